# SPDX-License-Identifier: GPL-3.0-or-later
"""The error that a solver will make on a grid, from the measured model alone: no model call."""

from __future__ import annotations

import torch
from torch import Tensor

from .linearized import LinearizedModel, interpolate
from .refine import IMAGE_WEIGHT, MAX_LENGTH, deviations
from .solvers import Solver

TIPPING = 0.03
"""Chosen on the three mixtures that all constants are chosen on (``bench stability_steps``)."""
MOST_TOLD = 0.7
"""A relative error from which most pictures are others, and a number says no more."""
SAME_SIGMA_RTOL = 1e-3
"""Of a grid's first sigma to the model's highest: single precision, and what core's schedulers round."""


class Unforetellable(Exception):
    """Why nothing can be said of a grid's error."""


def relative_error(model: LinearizedModel, grid: Tensor, solver: Solver) -> float:
    """RMS distance of pictures to those of ever more steps, over the RMS of these.

    e^2 = mean over probes of 2 l^2 / (2 + l^2) + 2 TIPPING d / sqrt(1 + d^2)

    l is how far the image ends from its own, d how far a state strays at most, both in widths. The first term
    is what images are off by, the second the share of them that end in another mode, where two images have a
    squared distance of 2: a border between modes lies within d of a trajectory in proportion to d.

    grid: sigmas [N + 1] that fall to 0; it may begin below the model's highest level, as with a denoise below
    1. Raises Unforetellable, and Untraceable for some samplers.
    """
    if len(grid) < 2 or float(grid[-1]) != 0 or not bool((grid.diff() < 0).all()):
        raise Unforetellable("its sigmas do not fall to 0")
    grid = grid.double()
    top, bottom = float(model.sigmas[0]), float(model.sigmas[-1])
    if not bottom * (1 - SAME_SIGMA_RTOL) <= float(grid[-2]) <= float(grid[0]) <= top * (1 + SAME_SIGMA_RTOL):
        raise Unforetellable(f"the model was measured from {top:.4g} to {bottom:.4g}")
    start = interpolate(model.states, model.c_of(grid[:1]))
    strayed = deviations(model, grid[None], solver, start)[0].nan_to_num(MAX_LENGTH)
    distances = strayed.square().sum(-1).sqrt().clamp(max=MAX_LENGTH)
    image = distances[-1] / IMAGE_WEIGHT
    farthest = torch.cat([distances[:-1], image[None]]).amax(0)
    off = 2 * image.square() / (2 + image.square())
    tipped = TIPPING * farthest / torch.hypot(farthest, torch.ones_like(farthest))
    return float((off + 2 * tipped).mean().sqrt())


def percent(error: float) -> str:
    """A relative error to two digits."""
    return f"over {100 * MOST_TOLD:.0f} %" if error > MOST_TOLD else f"{float(f'{100 * error:.2g}'):g} %"
