# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids of any number of steps from one profile: sigmas [N + 1] in float64, falling from the model's highest
to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import curves
from .equidistribution import equidistribute
from .errors import BadBlend, BadSteps
from .linearized import TABLE_POINTS, LinearizedModel
from .refine import DAMPINGS, loss, refine, strays
from .solvers import Solver
from .traced import TracedSolver

MAX_REFINED_STEPS = 40
"""Above it, moving single points gains nothing that can be seen."""
MIN_PATH_LEVELS = 61
"""Levels that a cheapest path may choose from: GITS' number."""
BLENDS = (0.25, 0.5, 0.75)
"""Shares of other grids that are tried for traced samplers."""
MAX_TRACED_ITERATIONS, MAX_TRACED_CALLS = 8, 2000
"""Of refinement for traced samplers; the model calls of its dry runs, which take a millisecond each."""
REFINED_STARTS = 2
"""How many of the best starts are refined: the loss has local minima."""
DENSITY_FLOOR = 1e-3
"""Of a density's maximum: what is hardly measurable still gets points."""

FLOW_SHARE = 0.5
"""Of core's grid in that of a flow model."""
LEAST_GAIN = 1e-3
"""In widths of states: what nobody sees, and more than the tables' straight lines are off by."""

Scheduler = Callable[[int], Tensor]
"""N -> sigmas [N + 1]."""


def make_grid(model: LinearizedModel, steps: int, solver: Solver, others: Sequence[Tensor] = ()) -> Tensor:
    """The grid of ``steps`` >= 1 steps on which the solver's errors, replayed in the linearised model, are
    least.

    others: grids to start from beside the pack's own, such as ComfyUI's; what is no grid of so many steps for
    this model is left out. Raises BadSteps.
    """
    if steps < 1:
        raise BadSteps(f"steps is {steps}; expected at least 1.")
    own = density_grid(model, steps, solver)
    if steps > MAX_REFINED_STEPS:
        return own
    given = [start for grid in others if (start := _usable(model, grid, steps)) is not None]
    if isinstance(solver, TracedSolver):
        return _traced_grid(model, steps, solver, given)
    starts = [own, cheapest_grid(model, steps, solver), curvature_grid(model, steps), *given]
    losses = loss(model, torch.stack(starts), solver)
    refined = torch.stack([refine(model, starts[int(i)], solver) for i in losses.argsort()[:REFINED_STARTS]])
    return refined[int(loss(model, refined, solver).argmin())]


def _traced_grid(model: LinearizedModel, steps: int, solver: TracedSolver, given: Sequence[Tensor]) -> Tensor:
    """Each replay costs a dry run of the sampler. So the grid of the plain solver that is most like it and
    the blends of that with the others compete first, and only the best of them is refined.
    """
    own = make_grid(model, steps, solver.like, given)
    if steps < 2:
        return own
    starts = [own, *given, *(blend(own, grid, share) for grid in given for share in BLENDS)]
    best = starts[int(loss(model, torch.stack(starts), solver).argmin())]
    calls = steps * (steps + 1 + len(DAMPINGS))
    return refine(model, best, solver, min(MAX_TRACED_ITERATIONS, MAX_TRACED_CALLS // calls))


def gains(model: LinearizedModel, grid: Tensor, base: Tensor, solver: Solver) -> bool:
    """Whether the solver, replayed, strays less on ``grid`` than on ``base``, both [N + 1], by more than the
    standard error over probes of the difference, and by what can be seen. True where ``base`` is no grid of N
    steps for this model.
    """
    usable = _usable(model, base, len(grid) - 1)
    if usable is None:
        return True
    of_grid, of_base = strays(model, torch.stack([grid.double(), usable]), solver)
    gained = of_base - of_grid
    error = float(gained.std(correction=0)) / max(1, len(gained) - 1) ** 0.5
    return float(gained.mean()) > max(error, LEAST_GAIN)


def for_denoise(make: Scheduler, steps: int, denoise: float) -> Tensor:
    """The last ``steps`` of a grid of int(steps / denoise), as core's schedulers do it: [steps + 1], or [0]
    where nothing is denoised.
    """
    if denoise <= 0:
        return torch.zeros(0, dtype=torch.float64)
    return make(max(steps, int(steps / min(denoise, 1.0))))[-(steps + 1) :]


def blend(grid: Tensor, base: Tensor, share: float) -> Tensor:
    """Between two grids [N + 1] of one length: geometric means of their points, ``share`` in [0, 1] of
    ``base``. Raises BadBlend.
    """
    if not 0 <= share <= 1:
        raise BadBlend(f"base_blend: got {share}; expected a share from 0 to 1.")
    points = (1 - share) * grid[:-1].double().log() + share * base[:-1].cpu().double().log()
    return torch.cat([points.exp(), points.new_zeros(1)])


def hedged(grid: Tensor, base: Tensor, flow: bool) -> Tensor:
    """A grid as far as it is to be trusted: of flow models half-way to ``base`` [N + 1], core's, since there
    what the linearised model foretells of single grids is less than what they differ by
    (``bench stability_flow``).
    """
    return blend(grid, base, FLOW_SHARE) if flow else grid


def curvature_grid(model: LinearizedModel, steps: int) -> Tensor:
    """Density sqrt(||x''||) in sigma: least error for Euler's steps where errors keep their size (arXiv
    2605.11547).
    """
    return end_in_zero(equidistribute(model.sigmas, _floored(curves.curvature(model)).sqrt(), steps))


def density_grid(model: LinearizedModel, steps: int, solver: Solver) -> Tensor:
    """Density rho(c) ~ (Phi e)^(1 / (p + 1)), which minimises the sum of Phi e h^p for local errors e of
    order p + 1.
    """
    weighted = curves.worst_amplification(model) * curves.local_error(model, solver)
    rho = _floored(weighted) ** (1 / (solver.order + 1))
    return end_in_zero(
        model.sigma_of(equidistribute(torch.linspace(0, 1, TABLE_POINTS, dtype=torch.float64), rho, steps))
    )


def cheapest_grid(model: LinearizedModel, steps: int, solver: Solver) -> Tensor:
    """The path over the levels with the least sum of Phi times local error.

    As GITS (Chen et al. 2024, arXiv 2405.11326), with the measured amplification Phi for its factor of 1.15 a
    step.
    """
    c = torch.linspace(0, 1, max(MIN_PATH_LEVELS, steps + 1), dtype=torch.float64)
    e = curves.local_errors(model, solver, c).square().sum(-1).mean(-1).sqrt()
    place = (c * (TABLE_POINTS - 1)).round().long()
    cost = e * torch.cat([curves.worst_amplification(model)[place], 1 / model.widths[-1:]])
    path = cheapest_path(cost, steps)
    return end_in_zero(model.sigma_of(torch.cat([c[path], c.new_ones(1)])))


def cheapest_path(cost: Tensor, steps: int, factor: float = 1.0) -> Tensor:
    """The levels [steps], the first 0, of the cheapest path of ``steps`` steps from level 0 to the end, by
    dynamic programming.

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


def end_in_zero(points: Tensor) -> Tensor:
    """Points [N + 1] with the last of them moved to 0."""
    return torch.cat([points[:-1], points.new_zeros(1)])


def _floored(density: Tensor) -> Tensor:
    return density.clamp(min=DENSITY_FLOOR * float(density.max()))


def _usable(model: LinearizedModel, grid: Tensor, steps: int) -> Tensor | None:
    """A grid of the right length with its ends where they must be, or None."""
    grid, top = grid.detach().cpu().double(), model.sigmas[:1]
    if (
        steps < 2
        or len(grid) != steps + 1
        or not bool((grid.diff() < 0).all())
        or float(grid[-1]) != 0
        or float(grid[-2]) < float(model.sigmas[-1])
    ):
        return None
    return torch.cat([top, grid[1:].clamp(max=float(top) * (1 - 1e-9))])
