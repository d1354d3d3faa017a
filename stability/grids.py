# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids of any number of steps from one profile: falling sigmas [N + 1] in float64, the first the model's,
the last 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from . import curves
from .errors import BadSteps
from .quantiles import equal_parts
from .refine import loss, refine
from .replay import FINE, Replay
from .solvers import SOLVERS

METHODS = ("refined", "density", "dynamic programming", "curvature", "equal stability")
MOST_REFINED = 40
"""Steps above which moving single points gains nothing that can be seen."""
DP_LEVELS = 61
REFINED_STARTS = 2
"""How many of the best starts are refined, against local minima."""

Scheduler = Callable[[int], Tensor]
"""N -> sigmas [N + 1]."""


def make_grid(
    replay: Replay, steps: int, solver: str, others: Sequence[Tensor] = (), method: str = "refined"
) -> Tensor:
    """The grid of ``steps`` >= 1 steps for a solver of ``SOLVERS``, by one of ``METHODS``.

    others: grids to start refinement from beside the pack's own, such as ComfyUI's; those of other lengths
    are left out.
    """
    if steps < 1:
        raise BadSteps(f"steps is {steps}; expected at least 1.")
    makers: Mapping[str, Callable[[Replay, int, str], Tensor]] = {
        "density": density_grid,
        "dynamic programming": dp_grid,
        "curvature": curvature_grid,
        "equal stability": equal_stability_grid,
    }
    if method in makers:
        return makers[method](replay, steps, solver)
    own = density_grid(replay, steps, solver)
    if steps > MOST_REFINED:
        return own
    given = (start for grid in others if (start := _usable(replay, grid, steps)) is not None)
    starts = [own, dp_grid(replay, steps, solver), curvature_grid(replay, steps), *given]
    losses = loss(replay, torch.stack(starts), solver)
    refined = torch.stack([refine(replay, starts[int(i)], solver) for i in losses.argsort()[:REFINED_STARTS]])
    return refined[int(loss(replay, refined, solver).argmin())]


def for_denoise(make: Scheduler, steps: int, denoise: float) -> Tensor:
    """The last ``steps`` of a grid of int(steps / denoise), as core's schedulers do it: [steps + 1], or [0]
    where nothing is denoised.
    """
    if denoise <= 0:
        return torch.zeros(0, dtype=torch.float64)
    return make(max(steps, int(steps / min(denoise, 1.0))))[-(steps + 1) :]


def blend(grid: Tensor, base: Tensor, share: float) -> Tensor:
    """Between two grids [N + 1] of one length: geometric means of their points, ``share`` in [0, 1] of
    ``base``.
    """
    points = (1 - share) * grid[:-1].double().log() + share * base[:-1].double().log()
    return torch.cat([points.exp(), grid.new_zeros(1, dtype=torch.float64)])


def equal_stability_grid(replay: Replay, steps: int, solver: str = "euler") -> Tensor:
    """The paper's: equal integrals of the measured ||J||. For cutting a horizon into segments to distill, not
    for sampling.
    """
    return _end_in_zero(equal_parts(replay.sigmas, curves.velocity_norm(replay), steps))


def curvature_grid(replay: Replay, steps: int, solver: str = "euler") -> Tensor:
    """Density sqrt(||x''||) in sigma, of least error for Euler's steps where errors keep their size (arXiv
    2605.11547).
    """
    bends = curves.curvature(replay)
    return _end_in_zero(
        equal_parts(replay.sigmas, bends.clamp(min=curves.FLOOR * float(bends.max())).sqrt(), steps)
    )


def density_grid(replay: Replay, steps: int, solver: str) -> Tensor:
    """Points of density rho(c) ~ (Phi e)^(1 / (p + 1)): it minimises the sum of Phi e h^p for local errors e
    of order p + 1.
    """
    weighted = curves.worst_amplification(replay) * curves.local_error(replay, solver)
    rho = weighted.clamp(min=curves.FLOOR * float(weighted.max())) ** (1 / (SOLVERS[solver].order + 1))
    c = equal_parts(torch.linspace(0, 1, FINE, dtype=torch.float64), rho, steps)
    return _end_in_zero(replay.sigma_of(c))


def dp_grid(replay: Replay, steps: int, solver: str) -> Tensor:
    """The path over measured levels with the least sum of Phi times local error, by dynamic programming.

    As GITS (Chen et al. 2024, arXiv 2405.11326), with the measured amplification Phi for its factor of 1.15 a
    step.
    """
    c = torch.linspace(0, 1, max(DP_LEVELS, steps + 1), dtype=torch.float64)
    e = curves.local_errors(replay, solver, c).signed.square().sum(-1).mean(-1).sqrt()
    place = (c * (FINE - 1)).round().long()
    cost = e * torch.cat([curves.worst_amplification(replay)[place], 1 / replay.widths[-1:]])
    path = cheapest_path(cost, steps)
    return _end_in_zero(replay.sigma_of(torch.cat([c[path], c.new_ones(1)])))


def cheapest_path(cost: Tensor, steps: int, factor: float = 1.0) -> Tensor:
    """The levels [steps], the first 0, of the cheapest path of ``steps`` steps from level 0 to the end.

    cost: [M, M + 1], of a step from level i to level j > i, the last column to the end. factor: GITS' growth
    of later costs.
    """
    M = len(cost)
    forward = cost[:, :M].masked_fill(torch.ones(M, M).tril().bool(), torch.inf)
    value, choices = cost[:, M], []
    for _ in range(steps - 1):
        value, choice = (forward + factor * value).min(1)
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return torch.tensor(path)


def _end_in_zero(points: Tensor) -> Tensor:
    return torch.cat([points[:-1], points.new_zeros(1)])


def _usable(replay: Replay, grid: Tensor, steps: int) -> Tensor | None:
    """A grid of the right length with its ends where they must be, or None."""
    grid = grid.detach().double().cpu()
    if (
        len(grid) != steps + 1
        or not bool((grid.diff() < 0).all())
        or float(grid[-1]) != 0
        or float(grid[-2]) < float(replay.sigmas[-1])
    ):
        return None
    return (
        torch.cat([replay.sigmas[:1], grid[1:].clamp(max=float(replay.sigmas[0]) * (1 - 1e-9))])
        if steps > 1
        else None
    )
