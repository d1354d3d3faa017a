# SPDX-License-Identifier: GPL-3.0-or-later
"""The error that a solver will make on a grid, from the measured model alone: no model call."""

from __future__ import annotations

from torch import Tensor

from .linearized import LinearizedModel, interpolate
from .refine import IMAGE_WEIGHT, deviations, lengths_of
from .solvers import Solver

MOST_TOLD = 0.7
"""A relative error from which most pictures are others, and a number says no more."""
SAME_SIGMA_RTOL = 1e-3
"""Of a grid's first sigma to the model's highest: single precision, and what core's schedulers round."""


class Unforetellable(Exception):
    """Why nothing can be said of a grid's error."""


def relative_error(model: LinearizedModel, grid: Tensor, solver: Solver) -> float:
    """RMS distance of pictures to those of ever more steps, over the RMS of these: 0 to sqrt(2), at which
    pictures have nothing in common.

    grid: sigmas [N + 1] that fall to 0; it may begin below the model's highest level, as with a denoise below
    1. Each probe's length l of :func:`refine.deviations`, in widths, counts as 2 l^2 / (2 + l^2). The states
    on the way are part of l: what strays there ends, in some pictures, in another mode, of which the probes
    themselves show little. Raises Unforetellable, and Untraceable for some samplers.
    """
    if len(grid) < 2 or float(grid[-1]) != 0 or not bool((grid.diff() < 0).all()):
        raise Unforetellable("its sigmas do not fall to 0")
    grid = grid.double()
    top, bottom = float(model.sigmas[0]), float(model.sigmas[-1])
    if not bottom * (1 - SAME_SIGMA_RTOL) <= float(grid[-2]) <= float(grid[0]) <= top * (1 + SAME_SIGMA_RTOL):
        raise Unforetellable(f"the model was measured from {top:.4g} to {bottom:.4g}")
    start = interpolate(model.states, model.c_of(grid[:1]))
    lengths = lengths_of(deviations(model, grid[None], solver, start))[0] / IMAGE_WEIGHT
    squares = lengths.square()
    return float((2 * squares / (2 + squares)).mean().sqrt())


def percent(error: float) -> str:
    """A relative error to two digits."""
    return f"over {100 * MOST_TOLD:.0f} %" if error > MOST_TOLD else f"{float(f'{100 * error:.2g}'):g} %"
