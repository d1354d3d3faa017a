# SPDX-License-Identifier: GPL-3.0-or-later
"""Several sums sum_j w_rj t_j of the same tensors: one read of every input, and one write of every sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import Backend, backend


def linear_combinations(
    weights: Sequence[Sequence[float]], tensors: Sequence[Tensor], by: Backend | None = None
) -> Tensor:
    """[R, ...] of R rows of ``weights`` over at least one tensor [...], all of one shape; summed in fp32 or
    wider.

    The result has the tensors' dtype (the widest of theirs). ``by``: the implementation; by default the one
    that :func:`~.dispatch.backend` chooses.
    """
    if (by or backend("linear_combinations", *tensors)) == "triton":
        from .linear_combinations_triton import launch

        return launch(weights, tensors)
    return by_torch(weights, tensors)


def by_torch(weights: Sequence[Sequence[float]], tensors: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack([tensor.flatten() for tensor in tensors])
    dtype, wide = stacked.dtype, torch.promote_types(stacked.dtype, torch.float32)
    # Not waited for: the host's numbers are staged before the call returns.
    rows = torch.tensor(weights, dtype=wide).to(stacked.device, non_blocking=True)
    return (rows @ stacked.to(wide)).to(dtype).reshape(len(weights), *tensors[0].shape)
