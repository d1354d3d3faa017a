# SPDX-License-Identifier: GPL-3.0-or-later
"""Up to every second model call skipped: its prediction is interpolated between evaluated ones.

F (``space``) of a trajectory is interpolated in sqrt(sigma) by the parabola through two evaluations before a
call and one behind it, which a draft makes known. The cubic through one more evaluation tells how far the
parabola is off:

    P3(t) - P2(t) = F[t0, t1, t2, t3] (t - t1) (t - t2) (t - t3),

F[...] being Newton's divided difference, which tells before a call whether it can be skipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..common.sampler_trace import ModelCall
from .combination import Combination, Prediction, SpanEvaluation, weighted_sum
from .predictors import lagrange
from .space import Space

ORDER = 2
"""Of the interpolating polynomial."""
NODES = ORDER + 2
"""Evaluations of the polynomial that checks it; so many are made before a call is skipped."""


def interpolate(
    space: Space, nodes: Sequence[SpanEvaluation], x: Combination, sigma: float
) -> tuple[Prediction, Prediction]:
    """The parabola's prediction at (x, sigma), and how much the cubic's differs from it.

    nodes: NODES evaluations in the order of the run, the last one behind sigma, the others before it.
    """
    low = _F_polynomial(space, nodes[1:], sigma)
    high = _F_polynomial(space, nodes, sigma)
    zero = Combination()
    return (
        tuple(space.D_of_F(x, F, sigma) for F in low),
        tuple(space.D_of_F(zero, b - a, sigma) for a, b in zip(low, high, strict=True)),
    )


def share_of_draft(space: Space, sigmas: Sequence[float], sigma: float) -> float:
    """How much of what the prediction of the draft behind is off goes into the one at sigma: dD / dD_3, by F.

    sigmas: of the NODES evaluations, the draft's last.
    """
    weights = lagrange([math.sqrt(each) for each in sigmas[1:]], math.sqrt(sigma))
    return abs(weights[-1]) * math.sin(space.angle(sigma)) / math.sin(space.angle(sigmas[-1]))


def _F_polynomial(space: Space, nodes: Sequence[SpanEvaluation], sigma: float) -> Prediction:
    weights = lagrange([math.sqrt(node.sigma) for node in nodes], math.sqrt(sigma))
    return _weighted_F(space, nodes, weights)


def divided_difference(space: Space, nodes: Sequence[SpanEvaluation]) -> Prediction:
    """F[t_0, ..., t_3] = sum_i F_i / prod_(j != i) (t_i - t_j), t = sqrt(sigma)."""
    times = [math.sqrt(node.sigma) for node in nodes]
    weights = [
        1 / math.prod(own - other for j, other in enumerate(times) if j != i) for i, own in enumerate(times)
    ]
    return _weighted_F(space, nodes, weights)


def _weighted_F(space: Space, nodes: Sequence[SpanEvaluation], weights: Sequence[float]) -> Prediction:
    """sum_i w_i F_i, part by part."""

    def part(p: int) -> Combination:
        F = [space.F_of(node.x, node.prediction[p], node.sigma) for node in nodes]
        return weighted_sum(zip(weights, F, strict=True))

    return tuple(map(part, range(len(nodes[-1].prediction))))


def in_between(calls: Sequence[ModelCall], n: int) -> bool:
    """Whether the n-th call lies between two others, each the only one of its step."""
    if not 0 < n < len(calls) - 1:
        return False
    before, call, behind = calls[n - 1 : n + 2]
    steps = before.step < call.step < behind.step
    return steps and min(before.sigma, behind.sigma) < call.sigma < max(before.sigma, behind.sigma)


def expected_deviation(
    space: Space, calls: Sequence[ModelCall], n: int, times: Sequence[float], third: float
) -> tuple[float, float]:
    """Where the n-th call is interpolated: RMS of the error of its prediction, relative to data, and how far
    the sampler arrives from the draft of the next, relative to that state.

    times: sqrt(sigma) of the evaluations before, from old to new; third: RMS of F[t0, t1, t2, t3] over them.
    """
    t, behind = (math.sqrt(calls[m].sigma) for m in (n, n + 1))
    D_of_F = math.sin(space.angle(calls[n].sigma))
    drafted = third * D_of_F * math.prod(abs(t - node) for node in times[-ORDER - 1 :])
    missed = third * D_of_F * math.prod(abs(t - node) for node in (*times[-ORDER:], behind))
    weight = sum(abs(w) for i, _, w in calls[n + 1].denoised_coeffs if i == n)
    return missed, weight * drafted * space.sigma_data / space.scale(calls[n + 1].sigma)
