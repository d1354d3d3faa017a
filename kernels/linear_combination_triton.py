# SPDX-License-Identifier: GPL-3.0-or-later
"""The Triton kernel of linear_combination. Imported when it is first chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

BLOCK = 1024


@triton.jit
def kernel(  # type: ignore[no-untyped-def]
    tensors,  # tuple of pointers, [n] each
    weights,  # tuple of as many fp32
    out,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(len(tensors)):
        total += weights[j] * tl.load(tensors[j] + i, mask=inside).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=inside)


def launch(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    flat = [tensor.expand_as(first).contiguous() for tensor in tensors]
    out = torch.empty_like(flat[0])
    if out.numel():
        kernel[(triton.cdiv(out.numel(), BLOCK),)](tuple(flat), tuple(map(float, weights)), out, out.numel(), BLOCK=BLOCK)
    return out
