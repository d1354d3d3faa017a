# SPDX-License-Identifier: GPL-3.0-or-later
"""Noise between two seeds: where it starts and ends, and that it is Gaussian on the way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dizzydiff.noise.spin import SpinNoise, spun


def draw(latent: dict, seed: int) -> Tensor:
    return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(seed))


def noise(degrees: float, rows: int = 1) -> Tensor:
    return SpinNoise(3, 4, degrees, draw).generate_noise({"samples": torch.zeros(rows, 4, 32, 32)})


def test_it_leads_from_one_seed_to_the_other() -> None:
    single = {"samples": torch.zeros(1, 4, 32, 32)}
    assert torch.equal(noise(0), draw(single, 3))
    torch.testing.assert_close(noise(90), draw(single, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(noise(180), -draw(single, 3), atol=1e-6, rtol=0)


@given(st.floats(0, 180), st.integers(2, 6))
def test_a_batch_turns_evenly_and_starts_from_the_single_picture(degrees: float, rows: int) -> None:
    whole = noise(degrees, rows)
    assert len(whole) == rows
    for i, row in enumerate(whole):
        torch.testing.assert_close(row[None], noise(degrees * i / (rows - 1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("degrees", [10, 45, 137])
def test_it_is_gaussian_noise_that_has_turned_by_the_angle(degrees: float) -> None:
    """Over 65,536 numbers: mean, variance and kurtosis of a Gaussian, and cos(angle) of the seed's noise."""
    shape = (1, 4, 128, 128)
    one, other = (draw({"samples": torch.zeros(shape)}, seed) for seed in (0, 1))
    turned = spun(one, other, [math.radians(degrees)])
    assert abs(float(turned.mean())) < 0.02
    assert float(turned.var()) == pytest.approx(1, abs=0.03)
    assert float((turned**4).mean()) == pytest.approx(3, abs=0.2)
    assert float((turned * one).mean()) == pytest.approx(math.cos(math.radians(degrees)), abs=0.03)
