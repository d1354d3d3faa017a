# SPDX-License-Identifier: GPL-3.0-or-later
"""Which implementation of an operation runs: a kernel only where it has been shown to pay."""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["torch", "triton"]

PAYS: frozenset[tuple[str, str]] = frozenset()
"""(operation, name of the device) where ``dev.py bench gpu`` found the kernel at least 1.2 times as fast as
torch.compile.

Empty: no GPU has been measured.
"""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels read and write; inside they compute in fp32."""


def backend(operation: str, *tensors: Tensor) -> Backend:
    """The implementation for these tensors, which must all lie on one CUDA or ROCm device for it to be
    Triton.
    """
    first = tensors[0]
    if (
        not PAYS
        or first.device.type != "cuda"
        or any(t.device != first.device or t.dtype not in DTYPES for t in tensors)
    ):
        return "torch"
    proven = (operation, torch.cuda.get_device_name(first.device)) in PAYS
    return "triton" if proven and importlib.util.find_spec("triton") else "torch"
