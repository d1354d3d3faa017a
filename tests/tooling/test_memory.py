# SPDX-License-Identifier: GPL-3.0-or-later
"""A lack of memory is told from other errors on every kind of device."""

from __future__ import annotations

import pytest
import torch

from dizzydiff.common.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.OutOfMemoryError(),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, max allowed: 9.07 GB)."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4294967296 bytes."),
        RuntimeError("Could not allocate tensor with 1073741824 bytes. There is not enough GPU video memory"),
        RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("HIP out of memory"),
    ],
)
def test_a_lack_of_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        KeyError("out of memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_another_judge_is_asked() -> None:
    assert is_out_of_memory(OSError("error 2"), lambda error: "2" in str(error))
