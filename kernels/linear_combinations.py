# SPDX-License-Identifier: GPL-3.0-or-later
"""Several sums sum_j w_rj t_j of the same tensors: one read of every input, and one write of every sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import Dispatcher, this_process
from .qualification import Implementation, Operation


def linear_combinations(
    weights: Sequence[Sequence[float]], tensors: Sequence[Tensor], dispatcher: Dispatcher | None = None
) -> Tensor:
    """[R, ...] of R rows of ``weights`` over at least one tensor [...], all of one shape; summed in fp32 or
    wider.

    The result has the tensors' dtype (the widest of theirs).
    """
    return (dispatcher or this_process())(LINEAR_COMBINATIONS, tensors, weights)


def by_torch(tensors: Sequence[Tensor], weights: Sequence[Sequence[float]]) -> Tensor:
    stacked = torch.stack([tensor.flatten() for tensor in tensors])
    dtype, wide = stacked.dtype, torch.promote_types(stacked.dtype, torch.float32)
    # Not waited for: the host's numbers are staged before the call returns.
    rows = torch.tensor(weights, dtype=wide).to(stacked.device, non_blocking=True)
    return (rows @ stacked.to(wide)).to(dtype).reshape(len(weights), *tensors[0].shape)


def _kernel() -> Implementation:
    from .linear_combinations_triton import launch

    return launch


LINEAR_COMBINATIONS = Operation("linear_combinations", by_torch, _kernel, torch.equal)
