# SPDX-License-Identifier: GPL-3.0-or-later
"""Running out of memory, by whatever name a device calls it."""

from __future__ import annotations

import torch

WORDS = ("out of memory", "not enough memory", "can't allocate memory", "insufficient memory")


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and ROCm raise OutOfMemoryError; MPS, DirectML and the CPU's allocator RuntimeErrors that say
    so.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)
