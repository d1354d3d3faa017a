# SPDX-License-Identifier: GPL-3.0-or-later
"""D + c (x - x~) and the squares of x - x~, which is read and formed once for both."""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import Backend, backend


def carry(D: Tensor, at: Tensor, x: Tensor, c: float, by: Backend | None = None) -> tuple[Tensor, Tensor]:
    """A prediction D [P, ...] made at x~ (``at``) [...], carried to x [...], and how far that is.

    Returns D + c (x - x~) of D's shape and dtype, and ||x - x~|| in fp32 or wider, on the device, with no
    dimension. ``by``: the implementation; by default the one that :func:`~.dispatch.backend` chooses.
    """
    if (by or backend("carry", D, at, x)) == "triton":
        from .carry_triton import launch

        return launch(D, at, x, c)
    return by_torch(D, at, x, c)


def by_torch(D: Tensor, at: Tensor, x: Tensor, c: float) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(D.dtype, torch.float32)
    offset = x.to(wide) - at
    return torch.add(D, offset, alpha=c).to(D.dtype), torch.linalg.vector_norm(offset)
