# SPDX-License-Identifier: GPL-3.0-or-later
"""The Triton kernel of linear_combinations. Imported when it is first chosen."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

BLOCK = 1024
"""Numbers of each tensor that a program reads."""


@triton.jit
def kernel(  # type: ignore[no-untyped-def]
    tensors,  # tuple of pointers, [n] each
    weights,  # fp32 [R, len(tensors)]
    out,  # [R, n]
    n,
    R: tl.constexpr,
    ROWS: tl.constexpr,  # the power of two at or above R
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, ROWS)
    inside, of_a_row = i < n, r < R
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for j in tl.static_range(len(tensors)):
        w = tl.load(weights + r * len(tensors) + j, mask=of_a_row, other=0.0)
        total += w[:, None] * tl.load(tensors[j] + i, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = r.to(tl.int64)[:, None] * n + i[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=of_a_row[:, None] & inside[None, :])


def launch(tensors: Sequence[Tensor], weights: Sequence[Sequence[float]]) -> Tensor:
    R, first = len(weights), tensors[0]
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    out = first.new_empty([R, *first.shape], dtype=dtype)
    if n := first.numel():
        flat = tuple(tensor.contiguous() for tensor in tensors)
        rows = torch.tensor(weights, dtype=torch.float32).to(first.device, non_blocking=True)
        ROWS = triton.next_power_of_2(R)
        kernel[(triton.cdiv(n, BLOCK),)](flat, rows, out, n, R=R, ROWS=ROWS, BLOCK=BLOCK)
    return out
