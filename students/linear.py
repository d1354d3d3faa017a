# SPDX-License-Identifier: GPL-3.0-or-later
"""Which layers multiply by a matrix, however they keep it: as numbers, in fewer bits, or packed."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import nn


def is_linear(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    """nn.Linear, or a class that has its sizes and a weight of its own kind, as core's quantised layers."""
    if isinstance(module, nn.Linear):
        return True
    sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return all(isinstance(size, int) for size in sizes) and hasattr(module, "weight")


def weight_shape(module: Any) -> torch.Size:
    """Of the matrix or kernel that a layer computes with: packed weights may have another."""
    if is_linear(module):
        return torch.Size([module.out_features, module.in_features])
    return module.weight.shape
