# SPDX-License-Identifier: GPL-3.0-or-later
"""Single steps of the solvers that several features take, from sigma down to sigma_next.

Noise levels are floats or tensors that broadcast against x and D [B, ...].
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S", float, Tensor)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """[B] as [B, 1, ...], in the dtype and on the device of ``like`` [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like)


def euler_step(x: Tensor, D: Tensor, sigma: S, sigma_next: S) -> Tensor:
    """x' = D + (sigma' / sigma)(x - D): Euler's step of dx/dsigma = (x - D) / sigma, and DDIM's."""
    return D + (sigma_next / sigma) * (x - D)


def dpmpp_2m_step(x: Tensor, D: Tensor, D_last: Tensor | None, h: S, h_last: S) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): x' = e^-h x - (e^-h - 1) D', where D' is D extrapolated
    from the step before, D' = D + (D - D_last) / (2 r) with r = h_last / h. Euler's where ``D_last`` is None.

    h = ln(sigma / sigma'), h_last = ln(sigma_last / sigma).
    """
    ahead = D if D_last is None else D + h / (2 * h_last) * (D - D_last)
    if isinstance(h, Tensor):
        return (-h).exp() * x - torch.expm1(-h) * ahead
    return math.exp(-h) * x - math.expm1(-h) * ahead
