# SPDX-License-Identifier: GPL-3.0-or-later
"""One window: the states to evaluate in a round, and what their predictions tell.

Drafts, and the states at which the sampler will arrive once the predictions are known, are linear
combinations of what is in hand. So is every error that tells something. One Gram matrix, read once, holds it
all.
"""

from __future__ import annotations

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
from .noise import NoiseTape
from .policies import Policy
from .predictors import Drafts, carried
from .space import Space
from .statistics import Pair, RoundStatistics, secant_error


@dataclass(frozen=True)
class Drafting:
    """How to draft: when and how wide, from what, and the space it is done in.

    parts: lengths of the parts that a latent [B, 1, sum(parts)] is packed from; () for a latent of one part.
    """

    policy: Policy
    drafts: Drafts
    space: Space
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Position:
    """Where the sampler stands: it makes its n-th model call at x.

    known: evaluations on which states to come may depend, by call; dropped: those at drafts that were too far
    off.
    """

    n: int
    x: Tensor
    known: dict[int, Evaluation]
    dropped: dict[int, Evaluation]


class Window:
    """The model calls from the n-th on that one round evaluates."""

    def __init__(self, how: Drafting, trace: Trace, noises: NoiseTape, position: Position) -> None:
        self._how, self._calls, self._noises, self._n = how, trace.calls, noises, position.n
        rows, whole = position.x.shape[0], position.x.numel()
        self._numels = (whole, *(rows * length for length in how.parts)) if len(how.parts) > 1 else (whole,)
        self._span = span = Span(how.parts)
        self._known = {i: span.evaluation(each) for i, each in position.known.items()}
        self._dropped = {m: span.evaluation(each) for m, each in position.dropped.items()}
        self._history = newest_per_sigma([*self._known.values(), *self._dropped.values()], trace.rising)
        self._predicted: dict[int, Prediction] = {}
        self._xi: dict[int, Combination] = {}
        self._x = [span.vector(position.x)]

    def drafts(self, count: int, statistics: RoundStatistics) -> list[Tensor]:
        """The states of the next ``count`` calls from predicted predictions; none where nothing is known
        yet.
        """
        if not self._history or not count:
            return []
        x = {i: each.x for i, each in self._known.items()} | {self._n: self._x[0]}
        D = {i: each.prediction for i, each in self._known.items()}
        for m in range(self._n, self._n + count):
            D[m] = self._predicted[m] = self._predict(m, x[m], statistics)
            call = self._calls[m + 1]
            noises = ((v, self._noise(q)) for q, v in call.noise_coeffs)
            x[m + 1] = weighted_sum([*call.terms(m + 1, x, D), *noises])
            self._x.append(x[m + 1])
        return list(self._span.evaluate(self._x[1:]))

    def statistics(self, before: RoundStatistics, predictions: Sequence[Tensor]) -> RoundStatistics:
        """What the ``predictions`` at x and at the drafts tell; of what they do not, the statistics
        ``before``.
        """
        space, n, calls, drafts = self._how.space, self._n, self._calls, self._how.drafts
        seen = {
            m: SpanEvaluation(x, calls[m].sigma, tuple(map(self._span.vector, prediction)))
            for m, (x, prediction) in enumerate(zip(self._x, predictions, strict=False), n)
        }
        rows: list[Combination] = []

        def row(vectors: Prediction) -> Prediction:
            """The same vectors as rows of the Gram matrix."""
            first = len(rows)
            rows.extend(vectors)
            return tuple(Combination({first + p: 1.0}) for p in range(len(vectors)))

        drafted = len(seen) > 1
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
        predicted = self._predicted if self._how.policy.verifies else {}
        errors = {m: row(difference(seen[m].prediction, each)) for m, each in predicted.items() if m in seen}
        gram, parameter, elsewhere = self._span.gram(rows), before.parameter, before.lipschitz_elsewhere
        if drafted:
            parameter = partial(drafts.predictor.fit, residuals, gram)
        if n in pairs:
            held = space.dD_dx(drafts.carry, calls[n].sigma)
            elsewhere = partial(secant_error, gram, pairs[n], held, space, calls[n].sigma)
        return RoundStatistics(
            space, drafts.carry, calls, parameter, elsewhere, self._numels, gram, errors, pairs
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
