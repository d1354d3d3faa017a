# SPDX-License-Identifier: GPL-3.0-or-later
"""Telling a lack of memory from other errors, on every kind of device."""

from __future__ import annotations

from collections.abc import Callable

import torch

PHRASES = (
    "out of memory",  # CUDA, HIP, MPS, NPU; also where they come as plain RuntimeError or AcceleratorError
    "can't allocate memory",  # PyTorch on the host
    "not enough memory",  # the same on Windows
    "could not allocate tensor",  # DirectML
    "out_of_device_memory",  # oneAPI
    "out_of_host_memory",
    "insufficient memory",
)


def is_out_of_memory(error: BaseException, *also: Callable[[BaseException], bool]) -> bool:
    """Whether an error says that memory did not suffice, by its type or its message.

    also: other judges, such as ComfyUI's ``comfy.model_management.is_oom``.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error).lower()
    return (isinstance(error, RuntimeError) and any(phrase in message for phrase in PHRASES)) or any(
        judge(error) for judge in also
    )
