# SPDX-License-Identifier: GPL-3.0-or-later
"""Move the points of a grid to where the errors of a solver, replayed from a profile, are least."""

from __future__ import annotations

import torch
from torch import Tensor

from .replay import Replay
from .solvers import solve

ROUNDS = 30
DAMPINGS = torch.logspace(-4, 3, 8, dtype=torch.float64)
NUDGE = 1e-4
"""Of a logit, for differences."""
SMALLEST_GAP = 1e-4
"""In c: of points so near to one another that a step between them does nothing."""
FLAT = 1e-4
"""Relative gain in a round below which it is the last."""


def deviations(replay: Replay, grids: Tensor, solver: str) -> Tensor:
    """How far a solver strays on grids [G, N + 1]: [G, Q], signed, of every state it asks the model about and of the image.

    The image alone would not do: an error on the way that later shrinks has, in other trajectories, tipped the image into
    another mode, which the few probes seldom show.
    """
    strayed: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        strayed.append(replay.deviation(x, sigma).expand(len(grids), -1, -1))
        return replay(x, sigma)

    image = solve(solver, model, replay.states[:1], grids) - replay.end
    return torch.cat([*strayed, image / replay.widths[-1]], dim=-1).flatten(1)


def loss(replay: Replay, grids: Tensor, solver: str) -> Tensor:
    """[G]: the sum of squares of :func:`deviations`; infinite for a grid that explodes."""
    return deviations(replay, grids, solver).square().sum(1).nan_to_num(nan=torch.inf)


def refine(replay: Replay, grid: Tensor, solver: str) -> Tensor:
    """From a grid [N + 1] to the nearest least loss, by Levenberg's and Marquardt's method on the gaps between its points.

    grid: falling, from the first measured level to 0. Returns [N + 1] in float64 of the same kind, never of a greater loss.
    """
    n = len(grid) - 1
    if n < 2:
        return grid.double()
    theta = _gaps(replay, grid).log()
    best = loss(replay, _grids(replay, theta[None]), solver)[0]
    eye = torch.eye(n, dtype=torch.float64)
    for _ in range(ROUNDS):
        e = deviations(replay, _grids(replay, torch.cat([theta[None], theta + NUDGE * eye])), solver)
        J = (e[1:] - e[0]) / NUDGE
        A = J @ J.T
        damped = A + DAMPINGS[:, None, None] * A.diagonal().mean().clamp(min=1e-300) * eye
        moved = theta - torch.linalg.solve(damped, (J @ e[0]).expand(len(DAMPINGS), n)).clamp(-1, 1)
        losses = loss(replay, _grids(replay, moved), solver)
        i = int(losses.argmin())
        if not losses[i] < best * (1 - FLAT):
            break
        theta, best = moved[i] - moved[i].mean(), losses[i]
    refined = _grids(replay, theta[None])[0]
    return refined if best < loss(replay, grid.double()[None], solver)[0] else grid.double()


def _gaps(replay: Replay, grid: Tensor) -> Tensor:
    """Gaps in c between the N points and down to the last measured level: [N], summing to 1."""
    c = replay.c_of(grid[:-1])
    gaps = torch.cat([c.diff(), 1 - c[-1:]]).clamp(min=SMALLEST_GAP)
    return gaps / gaps.sum()


def _grids(replay: Replay, theta: Tensor) -> Tensor:
    """Logits of gaps [G, N] -> grids [G, N + 1]."""
    gaps = theta.softmax(-1).clamp(min=SMALLEST_GAP)
    c = (gaps / gaps.sum(-1, keepdim=True)).cumsum(-1)[:, :-1]
    sigmas = replay.sigma_of(torch.cat([torch.zeros_like(c[:, :1]), c], dim=1))
    return torch.cat([sigmas, torch.zeros_like(sigmas[:, :1])], dim=1)
