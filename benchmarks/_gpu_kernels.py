# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernels beside eager torch, torch.compile, and a copy on the device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels import carry, linear_combinations
from ._gpu_time import timed

SHAPES = {
    "SD 512": (1, 4, 64, 64),
    "SDXL 1024": (1, 4, 128, 128),
    "Flux 1024": (1, 16, 128, 128),
    "video": (1, 16, 21, 90, 160),
    "long video": (1, 16, 61, 90, 160),
}
LAUNCHES = 20
"""Calls in a row a measurement, so that launching overlaps with the device as it does in a run."""


def kernels(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """GB/s of what must be read and written at least; ``of_copy``: beside a copy of a tensor of that shape in
    the same run.
    """
    for name, shape in list(SHAPES.items())[:2] if quick else SHAPES.items():
        for dtype in (torch.float32,) if quick else (torch.float32, torch.float16, torch.bfloat16):
            tensors = [torch.randn(shape, device=device).to(dtype) for _ in range(9)]
            copy = 2 * tensors[0].nbytes / _seconds(tensors[0].clone, device, quick)
            for operation, (touched, ways) in _operations(tensors, device).items():
                for way, call in ways.items():
                    seconds = _seconds(call, device, quick)
                    rate = touched * tensors[0].nbytes / seconds
                    yield {
                        "operation": operation,
                        "shape": name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "by": way,
                        "us": 1e6 * seconds,
                        "GB_per_s": rate / 1e9,
                        "copy_GB_per_s": copy / 1e9,
                        "of_copy": rate / copy,
                    }


def _operations(
    tensors: list[Tensor], device: torch.device
) -> dict[str, tuple[int, dict[str, Callable[[], Any]]]]:
    """Latents that must be touched, and the ways to do it: three drafts from four predictions, and a
    prediction carried and measured.
    """
    weights = [[(-1.0) ** j * (1 + r + j) for j in range(len(tensors))] for r in range(3)]
    D, at, x = tensors[:3]
    ways: dict[str, Callable[..., tuple[Callable, Callable]]] = {
        "torch": lambda: (linear_combinations.by_torch, carry.by_torch)
    }
    if device.type == "cuda":
        ways["torch.compile"] = lambda: (torch.compile(_sums), torch.compile(carry.by_torch, dynamic=False))
        if importlib.util.find_spec("triton"):
            ways["triton"] = _triton
    made = {way: make() for way, make in ways.items()}
    return {
        "linear_combinations": (
            len(tensors) + len(weights),
            {way: partial(combine, tensors, weights) for way, (combine, _) in made.items()},
        ),
        "carry": (4, {way: partial(move, (D[None], at, x), 0.7) for way, (_, move) in made.items()}),
    }


def _sums(tensors: list[Tensor], weights: list[list[float]]) -> Tensor:
    """What one would write for a compiler that fuses."""

    def total(row: list[float]) -> Tensor:
        first, *others = (weight * tensor.float() for weight, tensor in zip(row, tensors, strict=True))
        return sum(others, first)

    return torch.stack([total(row) for row in weights]).to(tensors[0].dtype)


def _triton() -> tuple[Callable, Callable]:
    from ..kernels import carry_triton, linear_combinations_triton

    return linear_combinations_triton.launch, carry_triton.launch


def _seconds(call: Callable[[], Any], device: torch.device, quick: bool) -> float:
    calls = 2 if quick else LAUNCHES

    def several() -> None:
        for _ in range(calls):
            call()

    return timed(several, device, 3 if quick else 20).wall / calls
