# SPDX-License-Identifier: GPL-3.0-or-later
"""D + c (x - x~) and the squares of x - x~, which is read and formed once for both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import Dispatcher, this_process
from .qualification import Implementation, Operation

NORM_RTOL = 1e-5
"""Of the norm, which is reported and no part of a picture."""


def carry(
    D: Tensor, at: Tensor, x: Tensor, c: float, dispatcher: Dispatcher | None = None
) -> tuple[Tensor, Tensor]:
    """A prediction D [P, ...] made at x~ (``at``) [...], carried to x [...], and how far that is.

    Returns D + c (x - x~) of D's shape and dtype, and ||x - x~|| in fp32 or wider, on the device, with no
    dimension.
    """
    return (dispatcher or this_process())(CARRY, (D, at, x), float(c))


def by_torch(tensors: Sequence[Tensor], c: float) -> tuple[Tensor, Tensor]:
    """Of (D, at, x)."""
    D, at, x = tensors
    wide = torch.promote_types(D.dtype, torch.float32)
    offset = x.to(wide) - at
    return torch.add(D, offset, alpha=c).to(D.dtype), torch.linalg.vector_norm(offset)


def _kernel() -> Implementation:
    from .carry_triton import launch

    return launch


def _agree(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.allclose(one[1], other[1], rtol=NORM_RTOL, atol=0.0)


CARRY = Operation("carry", by_torch, _kernel, _agree)
