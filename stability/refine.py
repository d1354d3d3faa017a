# SPDX-License-Identifier: GPL-3.0-or-later
"""Move the points of a grid to where the errors of a solver, replayed from a profile, are least."""

from __future__ import annotations

import torch
from torch import Tensor

from .replay import Replay
from .solvers import SOLVERS, solve

ROUNDS = 30
DAMPINGS = torch.logspace(-4, 3, 8, dtype=torch.float64)
NUDGE = 1e-4
"""Of a logit, for differences."""
SMALLEST_GAP = 1e-4
"""In c: of points so near to one another that a step between them does nothing."""
IMAGE = 2.5**0.5
"""How much more the image's deviation weighs than one state's."""
FAR = 1e6
"""More than any length that matters."""
FLAT = 1e-4
"""Relative gain in a round below which it is the last."""


def deviations(replay: Replay, grids: Tensor, solver: str) -> Tensor:
    """How far a solver strays on grids [G, N + 1]: [G, Q, P, r], signed, of every state it asks the model
    about and of the image.

    The image alone would not do: an error on the way that later shrinks has, in other trajectories, tipped
    the image into another mode, which the few probes seldom show.
    """
    strayed: list[Tensor] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        strayed.append(replay.deviation(x, sigma).expand(len(grids), -1, -1))
        return replay(x, sigma)

    image = solve(solver, model, replay.states[:1], grids) - replay.end
    return torch.stack([*strayed, IMAGE * image / replay.widths[-1]], dim=1)


def loss(replay: Replay, grids: Tensor, solver: str) -> Tensor:
    """[G]: the mean over probes of l / sqrt(1 + l^2), l the length of :func:`deviations`, and the solver's
    price of unevenness.

    A probe that strays as far as states differ has become another image, and by how far does not matter:
    where trajectories fold, what is linear explodes, and one such probe would decide for all that can still
    be kept.
    """
    lengths = _lengths(deviations(replay, grids, solver))
    bends = _bends(_gaps(replay, grids).log())
    return (lengths / torch.hypot(lengths, torch.ones_like(lengths))).mean(-1) + SOLVERS[
        solver
    ].evenness * bends.square().sum(-1)


def _lengths(e: Tensor) -> Tensor:
    return e.square().sum((1, 3)).sqrt().nan_to_num(nan=FAR).clamp(1e-9, FAR)


def _bends(theta: Tensor) -> Tensor:
    return theta.diff(dim=-1).diff(dim=-1)


def refine(replay: Replay, grid: Tensor, solver: str) -> Tensor:
    """From a grid [N + 1] to the nearest least loss, by Levenberg's and Marquardt's method on the gaps
    between its points.

    grid: falling, from the first measured level to 0. Returns [N + 1] in float64 of the same kind, never of a
    greater loss.
    """
    n = len(grid) - 1
    if n < 2:
        return grid.double()
    theta = _gaps(replay, grid[None])[0].log()
    best = loss(replay, _grids(replay, theta[None]), solver)[0]
    eye = torch.eye(n, dtype=torch.float64)
    for _ in range(ROUNDS):
        e = _residuals(replay, torch.cat([theta[None], theta + NUDGE * eye]), solver)
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


def _residuals(replay: Replay, theta: Tensor, solver: str) -> Tensor:
    """Of logits [G, N]: [G, M], half of whose sum of squares has the gradient of :func:`loss` at the first of
    them.
    """
    e = deviations(replay, _grids(replay, theta), solver)
    lengths = _lengths(e[:1])
    weights = 1 / (e.shape[2] * lengths * torch.hypot(lengths, torch.ones_like(lengths)) ** 3)
    bends = (2 * SOLVERS[solver].evenness) ** 0.5 * _bends(theta)
    return torch.cat([(e.nan_to_num() * weights.sqrt()[:, None, :, None]).flatten(1), bends], dim=1)


def _gaps(replay: Replay, grids: Tensor) -> Tensor:
    """Gaps in c between the N points and down to the last measured level: [G, N], each grid's summing to
    1.
    """
    c = replay.c_of(grids[:, :-1])
    gaps = torch.cat([c.diff(dim=-1), 1 - c[:, -1:]], dim=-1).clamp(min=SMALLEST_GAP)
    return gaps / gaps.sum(-1, keepdim=True)


def _grids(replay: Replay, theta: Tensor) -> Tensor:
    """Logits of gaps [G, N] -> grids [G, N + 1]."""
    gaps = theta.softmax(-1).clamp(min=SMALLEST_GAP)
    c = (gaps / gaps.sum(-1, keepdim=True)).cumsum(-1)[:, :-1]
    sigmas = replay.sigma_of(torch.cat([torch.zeros_like(c[:, :1]), c], dim=1))
    return torch.cat([sigmas, torch.zeros_like(sigmas[:, :1])], dim=1)
