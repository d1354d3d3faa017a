# SPDX-License-Identifier: GPL-3.0-or-later
"""Cumulative integrals over a table, and the points that split one into equal parts."""

import torch
from torch import Tensor


def cumulative(points: Tensor, values: Tensor) -> Tensor:
    """A_i, the integral of ``values`` from ``points[0]`` to ``points[i]`` by the trapezoid rule.

    points: [M], strictly monotone; values: [M]. Returns [M] in float64, A_0 = 0, rising for non-negative
    values.
    """
    x, y = points.double(), values.double()
    areas = (x.diff().abs()) * (y[1:] + y[:-1]) / 2
    return torch.cat([areas.new_zeros(1), areas.cumsum(0)])


def equal_parts(points: Tensor, values: Tensor, n: int) -> Tensor:
    """n + 1 points that split the integral of ``values`` over ``points`` into n equal parts: A(t_k) = (k / n)
    A(T).

    values: [M], positive and finite. Returns [n + 1] in float64, strictly monotone, with the end points kept
    exactly.
    """
    A = cumulative(points, values)
    x = points.double()
    targets = torch.linspace(0, 1, n + 1, dtype=torch.float64, device=x.device) * A[-1]
    i = torch.searchsorted(A, targets).clamp(1, len(A) - 1)
    part = (targets - A[i - 1]) / (A[i] - A[i - 1])
    result = x[i - 1] + part * (x[i] - x[i - 1])
    result[0], result[-1] = x[0], x[-1]
    return result
