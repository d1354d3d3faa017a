# SPDX-License-Identifier: GPL-3.0-or-later
"""One window: the states to evaluate in a round, and what their predictions tell.

Drafts, and the states at which the sampler will arrive once the predictions are known, are linear
combinations of what is in hand. So is every error that tells something. One Gram matrix, read once, holds it
all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
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
"""A skip that fails costs a round. One of k states it must be k times as sure of, and of flow models by their
margin more: some pictures of tiny/flow strayed without. Where two more failed than held, the next must be so
much surer besides; where so many did, there is no next.
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
    too far off; skips: of calls so far, that held, less those that did not and cost a call each; late:
    evaluations at far drafts, of earlier rounds, from the n-th call on; due: such drafts whose predictions
    come with this round.
    """

    n: int
    x: Tensor
    known: dict[int, Evaluation]
    dropped: dict[int, Evaluation]
    skips: int = 0
    late: dict[int, Evaluation] = field(default_factory=dict)
    due: dict[int, Tensor] = field(default_factory=dict)


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
        self._late = {m: span.evaluation(each) for m, each in position.late.items()}
        self._far = {m: each.x for m, each in self._late.items() if m > position.n}
        self._far |= {m: span.vector(x) for m, x in position.due.items()}
        self._covered: set[int] = set()
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
        self._shifts: dict[int, Combination] = {}

    @property
    def can_draft(self) -> bool:
        """Whether anything is known yet to draft from."""
        return bool(self._history)

    def evaluated(self, width: int, statistics: RoundStatistics, drafting: bool) -> list[int]:
        """The calls that a round of at most ``width`` states evaluates: from the n-th on, or from the next,
        where the n-th can be interpolated. The n-th alone where nothing is known yet to draft from.
        """
        if not self.can_draft:
            return [self._n]
        self._cover(statistics)
        skips = drafting and self._can_skip(statistics, width)
        first = self._n + 1 if skips else self._n
        return self.free(first, width)

    def free(self, first: int, count: int, taken: Collection[int] = ()) -> list[int]:
        """The next calls from the ``first`` on that are neither covered nor ``taken``, as many as there
        are.
        """
        calls = range(first, len(self._calls))
        return [m for m in calls if m not in self._covered and m not in taken][:count]

    def _can_skip(self, statistics: RoundStatistics, width: int) -> bool:
        """Whether skipping the n-th call is expected to be within the tolerance. Never after a drop."""
        how, n, calls = self._how, self._n, self._calls
        if (
            n not in how.skippable
            or n in self._late
            or n + 1 in self._far
            or self._dropped
            or len(self._history) < NODES
        ):
            return False
        times = [math.sqrt(each.sigma) for each in self._history]
        missed, distance = expected_deviation(how.space, calls, n, times, statistics.third_rms)
        lipschitz = max(statistics.lipschitz(n, piece) for piece in statistics.pieces)
        doubt = self._doubt * (width * statistics.margin(n) if width > 1 else 1.0)
        return how.policy.accepts(doubt * max(missed, lipschitz * distance))

    def far(self, evaluated: Sequence[int], ahead: Sequence[int], begun: Collection[int]) -> list[int]:
        """Calls for far drafts, one for each distance ``ahead`` of the n-th that is within the run; none
        that was ``begun`` before.
        """
        chosen: list[int] = []
        for distance in ahead:
            chosen += self.free(self._n + distance, 1, [*evaluated, *begun, *chosen])
        return chosen

    def _cover(self, statistics: RoundStatistics) -> None:
        """Evaluate no call again of which a far draft is near enough to where the sampler is expected now."""
        if not self._far:
            return
        self._expect(max(self._far), statistics)
        order = sorted(self._far)
        shifts = [self._far[m] - self._x[m] for m in order]
        gram = self._span.gram(shifts)
        for i, m in enumerate(order):
            of = Combination({i: 1.0})
            off = max(
                statistics.lipschitz(m, piece)
                * math.sqrt(max(gram.of_piece(piece)(of, of), 0.0) / self._numels[piece])
                for piece in statistics.pieces
            )
            if self._how.policy.accepts(off / self._how.space.scale(self._calls[m].sigma)):
                self._covered.add(m)

    def states(self, evaluated: Sequence[int], statistics: RoundStatistics) -> list[Tensor]:
        """x, or drafts from predicted predictions: the states of the ``evaluated`` calls."""
        self._expect(max(evaluated), statistics)
        if drafted := [m for m in evaluated if m > self._n]:
            drafts = self._span.evaluate([self._x[m] for m in drafted])
            self._states |= dict(zip(drafted, drafts, strict=True))
        return [self._states[m] for m in evaluated]

    def _expect(self, last: int, statistics: RoundStatistics) -> None:
        """Foretell predictions and states up to those of the ``last`` call."""
        x = {i: each.x for i, each in self._known.items()} | self._x
        D = {i: each.prediction for i, each in self._known.items()} | self._predicted
        for m in range(max(self._x), last):
            D[m] = self._predicted[m] = self._predict(m, x[m], statistics)
            call = self._calls[m + 1]
            noises = ((v, self._noise(q)) for q, v in call.noise_coeffs)
            self._x[m + 1] = x[m + 1] = weighted_sum([*call.terms(m + 1, x, D), *noises])

    def take(
        self, evaluated: Sequence[int], predictions: Sequence[Tensor], late: dict[int, Evaluation]
    ) -> dict[int, Evaluation]:
        """The ``predictions`` of the ``evaluated`` calls, by call, and the n-th interpolated where it is none
        of them. ``late``: evaluations of covered calls; those that follow upon the others are taken as well.
        """
        taken = late | {
            m: Evaluation(self._states[m], self._calls[m].sigma, prediction)
            for m, prediction in zip(evaluated, predictions, strict=True)
        }
        first = evaluated[0]
        last = next(m for m in itertools.count(first) if m + 1 not in taken)
        taken = {m: taken[m] for m in range(first, last + 1)}
        for m, each in taken.items():
            if each is late.get(m):
                self._seen[m] = seen = self._span.evaluation(each)
                self._shifts[m] = seen.x - self._x[m]
                continue
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
            for m, old in (self._late | self._dropped).items()
            if m in seen and seen[m] is not old
        }
        found = {m: each.prediction for m, each in seen.items()} | self._between
        predicted = self._predicted if how.policy.verifies else {}
        errors = {m: row(difference(found[m], each)) for m, each in predicted.items() if m in found}
        missed = {m: row(each) for m, each in self._missed.items()}
        third = row(self._third_difference())
        shifts = {m: row((shift,))[0] for m, shift in self._shifts.items()}
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
            shifts=shifts,
            pairs=pairs,
            missed=missed,
            of_draft=self._of_draft,
            third=third,
        )

    def _third_difference(self) -> Prediction:
        """F[t0, t1, t2, t3] of the newest evaluations; () where no call is skipped, or there are too few."""
        nodes = newest_per_sigma([*self._history, *self._seen.values()], self._rising)[-NODES:]
        known = self._how.skippable and len(nodes) == NODES
        return divided_difference(self._how.space, nodes) if known else ()

    def _predict(self, m: int, x: Combination, statistics: RoundStatistics) -> Prediction:
        space, elsewhere = self._how.space, self._dropped.get(m)
        if elsewhere is not None:
            return carried(elsewhere, x, statistics.dD_dx(m))
        sigma, parameter = self._calls[m].sigma, statistics.parameter()
        return self._how.drafts.predictor(space, self._history, parameter, x, sigma)

    def _noise(self, q: int) -> Combination:
        if q not in self._xi:
            self._xi[q] = self._span.vector(self._noises[q])
        return self._xi[q]
