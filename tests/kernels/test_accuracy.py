# SPDX-License-Identifier: GPL-3.0-or-later
"""Every operation against float64: PyTorch always, Triton where its interpreter runs (see test_triton.py)."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from dizzydiff.kernels import carry as carrying
from dizzydiff.kernels import linear_combinations as combining
from dizzydiff.kernels.qualification import Implementation, Operation

BACKENDS = ["torch", *(["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else [])]
SHAPES = [(1,), (41,), (401,), (1271,), (2, 3, 41), (1, 2, 3, 5, 401), (0,), (2, 0, 3)]
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest error over the sum of the magnitudes of the terms: two roundings of the dtype."""

every = pytest.mark.parametrize("by", BACKENDS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def implementation(operation: Operation, by: str) -> Implementation:
    return operation.reference if by == "torch" else operation.kernel()


def carry(D: Tensor, at: Tensor, x: Tensor, c: float, by: str) -> tuple[Tensor, Tensor]:
    return implementation(carrying.CARRY, by)((D, at, x), c)


def linear_combinations(weights: list[list[float]], tensors: list[Tensor], by: str) -> Tensor:
    return implementation(combining.LINEAR_COMBINATIONS, by)(tensors, weights)


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(result: Tensor, exact: Tensor, magnitude: Tensor, dtype: torch.dtype) -> None:
    assert result.dtype == dtype
    assert result.shape == exact.shape
    assert ((result.double() - exact).abs() <= TOLERANCES[dtype] * magnitude + 1e-12).all()


@every
@every_shape
@every_dtype
@pytest.mark.parametrize("R, T", [(1, 1), (1, 9), (2, 3), (3, 10), (7, 17)])
def test_linear_combinations_are_the_sums(
    by: str, shape: tuple[int, ...], dtype: torch.dtype, R: int, T: int
) -> None:
    weights = draw((R, T), torch.float32, 99)
    weights[0, 0] = 0.0
    tensors = [draw(shape, dtype, seed) for seed in range(T)]
    terms = torch.einsum("rt,t...->rt...", weights.double(), torch.stack(tensors).double())
    result = linear_combinations(weights.tolist(), tensors, by)
    assert_near(result, terms.sum(1), terms.abs().sum(1), dtype)


@every
@every_dtype
def test_linear_combinations_sum_in_fp32(by: str, dtype: torch.dtype) -> None:
    """Half precision rounds 256 + 0.1 to 256: a sum kept in it would give 0."""
    tensors = [torch.full([41], value, dtype=dtype) for value in (256.0, 0.09375, -256.0)]
    assert (linear_combinations([[1.0, 1.0, 1.0]], tensors, by) == 0.09375).all()


@every
def test_the_sums_have_the_widest_dtype_of_their_terms(by: str) -> None:
    tensors = [torch.ones(41, dtype=torch.float16), torch.full([41], 1e-5)]
    result = linear_combinations([[1.0, 1.0]], tensors, by)
    torch.testing.assert_close(result, torch.full([1, 41], 1.00001), rtol=1e-7, atol=0)


@every
@every_dtype
def test_operations_take_views(by: str, dtype: torch.dtype) -> None:
    """Transposed and strided inputs."""
    square, wide = draw((41, 41), dtype, 0), draw((41, 82), dtype, 1)
    result = linear_combinations([[1.0, 2.0]], [square.T, wide[:, ::2]], by)
    terms = torch.stack([square.T.double(), 2 * wide[:, ::2].double()])
    assert_near(result, terms.sum(0)[None], terms.abs().sum(0), dtype)
    D = torch.stack([square.T, square])
    carried, norm = carry(D, square.T, wide[:, ::2], 0.5, by)
    offset = wide[:, ::2].double() - square.T.double()
    assert_near(carried, D.double() + 0.5 * offset, D.double().abs() + offset.abs(), dtype)
    torch.testing.assert_close(norm.double(), offset.norm(), rtol=1e-5, atol=0)


@every
@every_shape
@every_dtype
@pytest.mark.parametrize("P", [1, 2])
def test_carry_moves_predictions_and_measures_how_far(
    by: str, shape: tuple[int, ...], dtype: torch.dtype, P: int
) -> None:
    D, at, x = draw((P, *shape), dtype, 0), draw(shape, dtype, 1), draw(shape, dtype, 2)
    carried, norm = carry(D, at, x, -0.7, by)
    offset = x.double() - at.double()
    assert_near(
        carried, D.double() - 0.7 * offset, D.double().abs() + x.double().abs() + at.double().abs(), dtype
    )
    assert norm.shape == ()
    torch.testing.assert_close(norm.double(), offset.norm(), rtol=1e-5, atol=0)


@every
def test_carry_measures_what_half_precision_cannot_square(by: str) -> None:
    """States at sigma 80 and above: their squares are beyond fp16's 65504."""
    x = torch.full([401], 600.0, dtype=torch.float16)
    norm = carry(x[None], torch.zeros_like(x), x, 1.0, by)[1]
    torch.testing.assert_close(norm, torch.tensor(600.0 * 401**0.5))


@every
def test_operations_give_the_same_bits_again(by: str) -> None:
    D, at, x = (draw((1271,), torch.float32, seed) for seed in range(3))
    for operation in (
        lambda: [linear_combinations([[1, 2, 3], [4, 5, 6]], [D, at, x], by)],
        lambda: carry(D[None], at, x, 0.3, by),
    ):
        assert all(torch.equal(one, other) for one, other in zip(operation(), operation(), strict=True))


def test_float64_stays_float64() -> None:
    D, at, x = (draw((41,), torch.float64, seed) for seed in range(3))
    torch.testing.assert_close(
        combining.linear_combinations([[1, 2, 3]], [D, at, x])[0], D + 2 * at + 3 * x, rtol=1e-14, atol=1e-14
    )
    torch.testing.assert_close(carrying.carry(D[None], at, x, 0.3)[1], (x - at).norm(), rtol=1e-14, atol=0)


def test_the_two_implementations_are_two() -> None:
    for operation in (carrying.CARRY, combining.LINEAR_COMBINATIONS):
        if "triton" in BACKENDS:
            assert operation.kernel().__module__ == f"{operation.reference.__module__}_triton"
