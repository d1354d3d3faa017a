# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a kernel may stand in for its PyTorch reference: the same bits, and clearly sooner.

The same bits, and not nearly the same numbers, because the verdict depends on a clock: it may come in the
middle of a picture, and differ from one process to the next, and neither may change what a seed gives. That
they are the same for all numbers is concluded from two sets, those at hand and normally distributed ones.
Another order of additions, or one rounding more, changes the last bit of about every third fp32 result, so
over thousands of results only the same arithmetic gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .device import Stopwatch

SPEED_UP = 1.2
"""Least ratio of PyTorch's time to the kernel's."""
LAUNCHES = 20
"""Calls in a row that are timed together, so that launching overlaps with the device as it does in a run."""
REPEATS = 5
"""Times that both are timed in turn. The least of each counts, since a disturbance only ever adds."""
CONCLUSIVE = 1024
"""Fewest numbers in a tensor whose agreement is taken as proof."""

Implementation = Callable[[Sequence[Tensor], Any], Any]
"""(tensors, coefficients) -> result."""


@dataclass(frozen=True)
class Operation:
    """An operation and its two implementations."""

    name: str
    reference: Implementation
    """In PyTorch."""
    kernel: Callable[[], Implementation]
    """Imports the kernel's module, and gives the function that launches it."""
    agree: Callable[[Any, Any], bool]
    """(the kernel's result, the reference's) -> whether a picture comes out the same."""


@dataclass(frozen=True)
class Verdict:
    """``kernel``: what is used from now on, None for PyTorch. ``everywhere``: it holds for every shape."""

    kernel: Implementation | None
    reason: str
    everywhere: bool = False


def qualify(
    operation: Operation, tensors: Sequence[Tensor], coefficients: Any, seconds: Stopwatch
) -> Verdict:
    """Try the kernel; raises whatever it does."""
    kernel = operation.kernel()
    for given in (tensors, normal_like(tensors)):
        if not operation.agree(kernel(given, coefficients), operation.reference(given, coefficients)):
            return Verdict(None, "the kernel's result differs")

    def time(run: Implementation) -> float:
        return seconds(lambda: [run(tensors, coefficients) for _ in range(LAUNCHES)])

    pairs = [(time(kernel), time(operation.reference)) for _ in range(REPEATS)]
    ours, theirs = map(min, zip(*pairs, strict=True))
    kept = theirs >= SPEED_UP * ours
    return Verdict(
        kernel if kept else None,
        f"the kernel takes {1e6 * ours / LAUNCHES:.1f} us, PyTorch {1e6 * theirs / LAUNCHES:.1f} us",
    )


def normal_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Normally distributed tensors of the same shapes, from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in tensors]
