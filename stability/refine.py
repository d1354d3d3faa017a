# SPDX-License-Identifier: GPL-3.0-or-later
"""Least squares over grids: points move to where a solver's errors, replayed in the linearised model, are
least.

Levenberg's and Marquardt's method, as the loss is a sum of squares of few unknowns whose Jacobian by
differences is one run of the solver on N + 1 grids at once. L-BFGS on the same loss took eight times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linearized import LinearizedModel
from .solvers import Solver

MAX_ITERATIONS = 30
DAMPINGS = torch.logspace(-4, 3, 8, dtype=torch.float64)
"""Marquardt's lambda, all tried at once, in units of the mean of diag(J^T J)."""
DIFFERENCE = 1e-4
"""Of a logit, for the Jacobian."""
MAX_LOGIT_CHANGE = 1.0
"""Of an iteration."""
MIN_GAP = 1e-4
"""In c: a step between nearer points does nothing."""
IMAGE_WEIGHT = 2.5**0.5
"""Of the image's deviation beside those of the states on the way."""
MIN_LENGTH, MAX_LENGTH = 1e-9, 1e6
"""Of a probe's deviations: less or more makes no difference, and keeps quotients finite."""
MIN_RELATIVE_GAIN = 1e-4
"""An iteration that gains less is the last."""


def deviations(model: LinearizedModel, grids: Tensor, solver: Solver, start: Tensor | None = None) -> Tensor:
    """How far a solver strays on grids [G, N + 1]: [G, Q, P, r], signed, in widths, of the state of each of
    its model calls and, last, of the image.

    start: states [1 or G, P, r] at the first sigmas, where these are not the highest level.

    The image alone would not do: an error on the way that later shrinks has, in other trajectories, tipped
    the image into another mode, which the few probes seldom show.
    """
    strayed: list[Tensor] = []

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        strayed.append(model.deviation(x, sigma).expand(len(grids), -1, -1))
        return model(x, sigma)

    image = solver.solve(watched, model.states[:1] if start is None else start, grids) - model.end
    return torch.stack([*strayed, IMAGE_WEIGHT * image / model.widths[-1]], dim=1)


def loss(model: LinearizedModel, grids: Tensor, solver: Solver) -> Tensor:
    """[G]: the mean over probes of :func:`strays`, plus the solver's price of uneven steps."""
    bends = _second_differences(_gaps(model, grids).log())
    return strays(model, grids, solver).mean(-1) + solver.unevenness_price * bends.square().sum(-1)


def strays(model: LinearizedModel, grids: Tensor, solver: Solver) -> Tensor:
    """[G, P] in [0, 1): l / sqrt(1 + l^2), l the length of a probe's :func:`deviations`.

    The quotient bounds a probe's share. One that strays by the width of states has become another image, and
    by how far does not matter: where trajectories fold, what is linear explodes, and one such probe would
    decide for all that can still be kept.
    """
    lengths = _lengths(deviations(model, grids, solver))
    return lengths / torch.hypot(lengths, torch.ones_like(lengths))


def refine(model: LinearizedModel, grid: Tensor, solver: Solver, iterations: int = MAX_ITERATIONS) -> Tensor:
    """From a grid [N + 1] to a local minimum of :func:`loss`, over the logits of the gaps between its points.

    grid: falling, from the first measured level to 0. Returns one of the same kind in float64, never of a
    greater loss.
    """
    n = len(grid) - 1
    if n < 2:
        return grid.double()
    theta = _gaps(model, grid[None])[0].log()
    least = loss(model, _grids(model, theta[None]), solver)[0]
    eye = torch.eye(n, dtype=torch.float64)
    for _ in range(iterations):
        r = _residuals(model, torch.cat([theta[None], theta + DIFFERENCE * eye]), solver)
        J = (r[1:] - r[0]) / DIFFERENCE  # transposed: a row a logit
        A = J @ J.T
        damped = A + DAMPINGS[:, None, None] * A.diagonal().mean().clamp(min=1e-300) * eye
        step = torch.linalg.solve(damped, (J @ r[0]).expand(len(DAMPINGS), n))
        moved = theta - step.clamp(-MAX_LOGIT_CHANGE, MAX_LOGIT_CHANGE)
        losses = loss(model, _grids(model, moved), solver)
        i = int(losses.argmin())
        if not losses[i] < least * (1 - MIN_RELATIVE_GAIN):
            break
        theta, least = moved[i] - moved[i].mean(), losses[i]
    refined = _grids(model, theta[None])[0]
    return refined if least < loss(model, grid.double()[None], solver)[0] else grid.double()


def _residuals(model: LinearizedModel, theta: Tensor, solver: Solver) -> Tensor:
    """Of logits [G, N]: [G, M], half of whose sum of squares has the gradient of :func:`loss` at the first of
    them: reweighted least squares, with l'(e) / e of the bounded length for weights.
    """
    e = deviations(model, _grids(model, theta), solver)
    lengths = _lengths(e[:1])
    weights = 1 / (e.shape[2] * lengths * torch.hypot(lengths, torch.ones_like(lengths)) ** 3)
    bends = (2 * solver.unevenness_price) ** 0.5 * _second_differences(theta)
    return torch.cat([(e.nan_to_num() * weights.sqrt()[:, None, :, None]).flatten(1), bends], dim=1)


def _lengths(deviations: Tensor) -> Tensor:
    return deviations.square().sum((1, 3)).sqrt().nan_to_num(nan=MAX_LENGTH).clamp(MIN_LENGTH, MAX_LENGTH)


def _second_differences(theta: Tensor) -> Tensor:
    return theta.diff(n=2, dim=-1)


def _gaps(model: LinearizedModel, grids: Tensor) -> Tensor:
    """Gaps in c between the N points and down to the last measured level: [G, N], each grid's summing to
    1.
    """
    c = model.c_of(grids[:, :-1])
    gaps = torch.cat([c.diff(dim=-1), 1 - c[:, -1:]], dim=-1).clamp(min=MIN_GAP)
    return gaps / gaps.sum(-1, keepdim=True)


def _grids(model: LinearizedModel, theta: Tensor) -> Tensor:
    """Logits of gaps [G, N] -> grids [G, N + 1]."""
    gaps = theta.softmax(-1).clamp(min=MIN_GAP)
    c = (gaps / gaps.sum(-1, keepdim=True)).cumsum(-1)[:, :-1]
    sigmas = model.sigma_of(torch.cat([torch.zeros_like(c[:, :1]), c], dim=1))
    return torch.cat([sigmas, torch.zeros_like(sigmas[:, :1])], dim=1)
