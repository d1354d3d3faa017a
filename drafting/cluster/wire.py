# SPDX-License-Identifier: GPL-3.0-or-later
"""Tensors as what travels: bytes, with dtype and shape. Any dtype keeps its bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

Sent = tuple[Any, str, tuple[int, ...]]
"""What travels: a plain tuple, so that the other side needs no class of ours to read it."""


class Packed(NamedTuple):
    """data: uint8 [bytes], a numpy array, which Ray carries without copying it."""

    data: Any
    dtype: str
    shape: tuple[int, ...]


def packed(tensor: Tensor) -> Sent:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tuple(Packed(data, str(tensor.dtype).rpartition(".")[2], tuple(tensor.shape)))


def unpacked(sent: Sent, device: torch.device | str = "cpu") -> Tensor:
    """What :func:`packed` was given, on a device."""
    data, dtype, shape = sent
    return torch.from_numpy(data.copy()).view(getattr(torch, dtype)).reshape(shape).to(device)
