# SPDX-License-Identifier: GPL-3.0-or-later
"""One window: the states to evaluate in a round, and what their predictions tell.

Drafts, and the states at which the sampler will arrive once the predictions are known, are linear
combinations of what is in hand. So is every error that tells something. One Gram matrix, read once, holds it
all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..common.sampler_trace import Trace
from .combination import (
    Combination,
    Evaluation,
    Prediction,
    Span,
    SpanEvaluation,
    difference,
    newest_per_sigma,
    weighted_sum,
)
from .interpolation import NODES, divided_difference, expected_deviation, interpolate, share_of_draft
from .noise import NoiseTape
from .policies import Policy
from .predictors import Drafts, carried
from .space import Space
from .statistics import Pair, RoundStatistics, secant_error

DOUBT, MOST_LOST = 2.0, 3
"""A skip that fails costs a call. Where two more failed than held, the next must be so much surer; where so
many did, there is no next.
"""


@dataclass(frozen=True)
class Drafting:
    """How to draft: when and how wide, from what, and the space it is done in.

    parts: lengths of the parts that a latent [B, 1, sum(parts)] is packed from; () for a latent of one part.
    """

    policy: Policy
    drafts: Drafts
    space: Space
    parts: tuple[int, ...] = ()
    skippable: frozenset[int] = frozenset()
    """Calls that may be interpolated instead of evaluated, where that is near enough."""


@dataclass(frozen=True)
class Position:
    """Where the sampler stands: it makes its n-th model call at x.

    known: predictions on which states to come may depend, by call; dropped: evaluations at drafts that were
    too far off; skips: of calls so far, that held, less those that did not and cost a call each.
    """

    n: int
    x: Tensor
    known: dict[int, Evaluation]
    dropped: dict[int, Evaluation]
    skips: int = 0


class Window:
    """The model calls from the n-th on that one round evaluates."""

    def __init__(self, how: Drafting, trace: Trace, noises: NoiseTape, position: Position) -> None:
        self._how, self._calls, self._noises, self._n = how, trace.calls, noises, position.n
        lost = -position.skips
        self._doubt = math.inf if lost >= MOST_LOST else DOUBT if lost == MOST_LOST - 1 else 1.0
        rows, whole = position.x.shape[0], position.x.numel()
        lengths = how.parts if len(how.parts) > 1 else (whole // rows,)
        pieces = [length for length in lengths for _ in range(rows)]
        self._numels = (whole, *pieces) if len(pieces) > 1 else (whole,)
        self._span = span = Span(how.parts)
        self._known = {i: span.evaluation(each) for i, each in position.known.items()}
        self._dropped = {m: span.evaluation(each) for m, each in position.dropped.items()}
        evaluated = [self._known[i] for i, each in position.known.items() if not each.interpolated]
        self._rising = trace.rising
        self._history = newest_per_sigma([*evaluated, *self._dropped.values()], trace.rising)
        self._predicted: dict[int, Prediction] = {}
        self._xi: dict[int, Combination] = {}
        self._states = {position.n: position.x}
        self._x = {position.n: span.vector(position.x)}
        self._seen: dict[int, SpanEvaluation] = {}
        self._between: dict[int, Prediction] = {}
        self._missed: dict[int, Prediction] = {}
        self._of_draft: dict[int, float] = {}

    def evaluated(self, width: int, statistics: RoundStatistics, drafting: bool) -> range:
        """The calls that a round of at most ``width`` states evaluates: from the n-th on, or from the next,
        where the n-th can be interpolated. The n-th alone where nothing is known yet to draft from.
        """
        if not self._history:
            return range(self._n, self._n + 1)
        skips = drafting and self._can_skip(statistics)
        first = self._n + 1 if skips else self._n
        return range(first, first + width)

    def _can_skip(self, statistics: RoundStatistics) -> bool:
        """Whether skipping the n-th call is expected to be within the tolerance. Never after a drop."""
        how, n, calls = self._how, self._n, self._calls
        if n not in how.skippable or self._dropped or len(self._history) < NODES:
            return False
        times = [math.sqrt(each.sigma) for each in self._history]
        missed, distance = expected_deviation(how.space, calls, n, times, statistics.third_rms)
        lipschitz = max(statistics.lipschitz(n, piece) for piece in statistics.pieces)
        return how.policy.accepts(self._doubt * max(missed, lipschitz * distance))

    def states(self, evaluated: range, statistics: RoundStatistics) -> list[Tensor]:
        """x, or drafts from predicted predictions: the states of the ``evaluated`` calls."""
        x = {i: each.x for i, each in self._known.items()} | self._x
        D = {i: each.prediction for i, each in self._known.items()}
        for m in range(self._n, evaluated[-1]):
            D[m] = self._predicted[m] = self._predict(m, x[m], statistics)
            call = self._calls[m + 1]
            noises = ((v, self._noise(q)) for q, v in call.noise_coeffs)
            self._x[m + 1] = x[m + 1] = weighted_sum([*call.terms(m + 1, x, D), *noises])
        if drafted := [m for m in evaluated if m > self._n]:
            drafts = self._span.evaluate([self._x[m] for m in drafted])
            self._states |= dict(zip(drafted, drafts, strict=True))
        return [self._states[m] for m in evaluated]

    def take(self, evaluated: range, predictions: Sequence[Tensor]) -> dict[int, Evaluation]:
        """The ``predictions`` of the ``evaluated`` calls, by call, and the n-th interpolated where it is none
        of them.
        """
        taken = {
            m: Evaluation(self._states[m], self._calls[m].sigma, prediction)
            for m, prediction in zip(evaluated, predictions, strict=True)
        }
        for m, each in taken.items():
            parts = tuple(map(self._span.vector, each.prediction))
            self._seen[m] = SpanEvaluation(self._x[m], each.sigma, parts)
        if (n := self._n) not in taken:
            nodes, sigma = [*self._history[1 - NODES :], self._seen[n + 1]], self._calls[n].sigma
            space, sigmas = self._how.space, [node.sigma for node in nodes]
            self._between[n], self._missed[n] = interpolate(space, nodes, self._x[n], sigma)
            self._of_draft[n] = share_of_draft(space, sigmas, sigma)
            D = self._span.evaluate(self._between[n])
            taken[n] = Evaluation(self._states[n], sigma, D, interpolated=True)
        return taken

    def statistics(self, before: RoundStatistics) -> RoundStatistics:
        """What the predictions of the round tell; of what they do not, the statistics ``before``."""
        how, n, calls, seen = self._how, self._n, self._calls, self._seen
        space, drafts = how.space, how.drafts
        rows: list[Combination] = []

        def row(vectors: Prediction) -> Prediction:
            """The same vectors as rows of the Gram matrix."""
            first = len(rows)
            rows.extend(vectors)
            return tuple(Combination({first + p: 1.0}) for p in range(len(vectors)))

        drafted = max(seen) > n
        residuals = (
            [row(each) for each in drafts.predictor.residuals(space, self._history, seen[max(seen)])]
            if drafted
            else []
        )
        pairs = {
            m: Pair(row((seen[m].x - old.x,))[0], row(difference(seen[m].prediction, old.prediction)))
            for m, old in self._dropped.items()
            if m in seen
        }
        found = {m: each.prediction for m, each in seen.items()} | self._between
        predicted = self._predicted if how.policy.verifies else {}
        errors = {m: row(difference(found[m], each)) for m, each in predicted.items() if m in found}
        missed = {m: row(each) for m, each in self._missed.items()}
        nodes = newest_per_sigma([*self._history, *seen.values()], self._rising)[-NODES:]
        third = row(divided_difference(space, nodes)) if how.skippable and len(nodes) == NODES else ()
        gram, parameter, elsewhere = self._span.gram(rows), before.parameter, before.lipschitz_elsewhere
        if drafted:
            parameter = partial(drafts.predictor.fit, residuals, gram)
        if n in pairs:
            held = space.dD_dx(drafts.carry, calls[n].sigma)
            elsewhere = partial(secant_error, gram, pairs[n], held, space, calls[n].sigma)
        return RoundStatistics(
            space,
            drafts.carry,
            calls,
            parameter,
            elsewhere,
            numels=self._numels,
            gram=gram,
            errors=errors,
            pairs=pairs,
            missed=missed,
            of_draft=self._of_draft,
            third=third,
        )

    def _predict(self, m: int, x: Combination, statistics: RoundStatistics) -> Prediction:
        space, dropped = self._how.space, self._dropped.get(m)
        if dropped is not None:
            return carried(dropped, x, statistics.dD_dx(m))
        sigma, parameter = self._calls[m].sigma, statistics.parameter()
        return self._how.drafts.predictor(space, self._history, parameter, x, sigma)

    def _noise(self, q: int) -> Combination:
        if q not in self._xi:
            self._xi[q] = self._span.vector(self._noises[q])
        return self._xi[q]
