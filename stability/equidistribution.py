# SPDX-License-Identifier: GPL-3.0-or-later
"""Cumulative integrals over a table, and meshes that equidistribute a density (de Boor 1973)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def cumulative(points: Tensor, values: Tensor) -> Tensor:
    """A_i = |int from points[0] to points[i] of ``values``|, by the trapezoid rule.

    points: [M], strictly monotone, rising or falling; values: [M], not negative. Returns [M] in float64,
    rising, A_0 = 0.
    """
    areas = torch.cumulative_trapezoid(values.double(), points.double()).abs()
    return torch.cat([areas.new_zeros(1), areas])


def equidistribute(points: Tensor, density: Tensor, n: int) -> Tensor:
    """t_0 ... t_n with equal integrals of ``density`` between them: A(t_k) = (k / n) A(T).

    points: [M], strictly monotone; density: [M], positive and finite. Returns [n + 1] in float64, strictly
    monotone, the ends kept exactly.
    """
    A = cumulative(points, density).numpy()
    return torch.from_numpy(np.interp(np.linspace(0, 1, n + 1) * A[-1], A, points.double().numpy()))
