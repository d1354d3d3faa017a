# SPDX-License-Identifier: GPL-3.0-or-later
"""sum_i w_i t_i: one read of every input and one write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import Backend, backend


def linear_combination(weights: Sequence[float], tensors: Sequence[Tensor], by: Backend | None = None) -> Tensor:
    """sum_i w_i t_i, of the shape and dtype of tensors[0], to which the others broadcast; summed in fp32 or wider.

    ``by``: the implementation; by default the one that :func:`~.dispatch.backend` chooses.
    """
    if (by or backend("linear_combination", *tensors)) == "triton":
        from .linear_combination_triton import launch

        return launch(weights, tensors)
    return by_torch(weights, tensors)


def by_torch(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    dtype = tensors[0].dtype
    total = tensors[0].to(torch.promote_types(dtype, torch.float32)) * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total.to(dtype)
