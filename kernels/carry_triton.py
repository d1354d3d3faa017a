# SPDX-License-Identifier: GPL-3.0-or-later
"""The Triton kernel of carry. Imported when it is first chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

BLOCK = 1024


@triton.jit
def kernel(  # type: ignore[no-untyped-def]
    D,  # [P, n]
    at,  # [n]
    x,  # [n]
    out,  # [P, n]
    squares,  # [programs]: the sum of (x - at)^2 over each program's part
    c,  # fp32
    n,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    i = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    offset = tl.load(x + i, mask=inside, other=0.0).to(tl.float32) - tl.load(
        at + i, mask=inside, other=0.0
    ).to(tl.float32)
    tl.store(squares + program, tl.sum(offset * offset))
    at_p = i
    for _ in tl.static_range(P):
        carried = tl.load(D + at_p, mask=inside).to(tl.float32) + c * offset
        tl.store(out + at_p, carried.to(out.dtype.element_ty), mask=inside)
        at_p += n


def launch(tensors: Sequence[Tensor], c: float) -> tuple[Tensor, Tensor]:
    """Of (D, at, x)."""
    D, at, x = (tensor.contiguous() for tensor in tensors)
    n, out = x.numel(), torch.empty_like(D)
    # Partial sums, and not atomic additions, whose order and so whose result would differ from run to run.
    squares = x.new_empty([triton.cdiv(n, BLOCK)], dtype=torch.float32)
    if n:
        kernel[(len(squares),)](D, at, x, out, squares, float(c), n, P=D.numel() // n, BLOCK=BLOCK)
    return out, squares.sum().sqrt()
