# SPDX-License-Identifier: GPL-3.0-or-later
"""One window: the states to evaluate in a round, and what their predictions tell.

Drafts, and the states at which the sampler will arrive once the predictions are known, are linear
combinations of what is in hand. So is every error that tells something. One matrix of inner products, read
once, holds it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .calls import Call
from .coordinates import Space
from .findings import Findings, Pair, roughness
from .noise import NoiseTape
from .policies import Policy
from .predictors import Basis, Following, Guess, Trend, carried, off, slope
from .span import Combination, Combined, Known, Parts, Span, combine, less, newest


@dataclass(frozen=True)
class Drafting:
    """How to draft: the policy, the guess, the carry, and the space they work in."""

    policy: Policy
    guess: Guess
    carry: Basis
    space: Space

    @classmethod
    def frozen(cls, policy: Policy, space: Space) -> Drafting:
        """The paper's: one eps held fixed."""
        return cls(policy, Trend((0,)), "eps", space)

    @classmethod
    def extrapolated(cls, policy: Policy, space: Space, stochastic: bool) -> Drafting:
        """What deviates least: eps of a smooth trajectory is extrapolated; eps at a state with fresh noise
        contains that noise, so there the newest prediction follows the state by a learned share."""
        return cls(policy, Following() if stochastic else Trend((2, 3, 1)), "F", space)


class Window:
    """From the n-th question on, which the sampler asks at x.

    ``answers`` are those on which states to come may depend; ``stale`` are predictions at drafts that were
    dropped, by question.
    """

    def __init__(
        self,
        how: Drafting,
        calls: Sequence[Call],
        tape: NoiseTape,
        n: int,
        x: Tensor,
        answers: dict[int, Known],
        stale: dict[int, Known],
    ) -> None:
        self._how, self._calls, self._tape, self._n, self._size = how, calls, tape, n, x.numel()
        self._span = span = Span()
        self._answers = {i: span.known(answer) for i, answer in answers.items()}
        self._stale = {m: span.known(each) for m, each in stale.items()}
        self._known = newest([*self._answers.values(), *self._stale.values()])
        self._guesses: dict[int, Parts] = {}
        self._noises: dict[int, Combination] = {}
        self._x = [span.vector(x)]

    def drafts(self, count: int, found: Findings) -> list[Tensor]:
        """The states of the next ``count`` questions from guessed answers; none where nothing is known to
        guess from.
        """
        if not self._known or not count:
            return []
        x = {i: answer.x for i, answer in self._answers.items()} | {self._n: self._x[0]}
        D = {i: answer.prediction for i, answer in self._answers.items()}
        for m in range(self._n, self._n + count):
            D[m] = self._guesses[m] = self._guess(m, x[m], found)
            call = self._calls[m + 1]
            x[m + 1] = combine([*call.terms(m + 1, x, D), *((v, self._noise(q)) for q, v in call.draws)])
            self._x.append(x[m + 1])
        return list(self._span.evaluate(self._x[1:]))

    def findings(self, before: Findings, predictions: Sequence[Tensor]) -> Findings:
        """What the ``predictions`` at x and at the drafts tell; about what they do not, the findings
        ``before``.
        """
        how, n, calls = self._how, self._n, self._calls
        seen = {
            m: Combined(x, calls[m].sigma, tuple(map(self._span.vector, prediction)))
            for m, (x, prediction) in enumerate(zip(self._x, predictions, strict=True), n)
        }
        rows: list[Combination] = []

        def entered(parts: Parts) -> Parts:
            rows.extend(parts)
            return tuple({len(rows) - len(parts) + p: 1.0} for p in range(len(parts)))

        drafted = len(seen) > 1
        evidence = (
            [entered(parts) for parts in how.guess.evidence(how.space, self._known, seen[max(seen)])]
            if drafted
            else []
        )
        pairs = {
            m: Pair(entered((less(seen[m].x, old.x),))[0], entered(off(seen[m].prediction, old.prediction)))
            for m, old in self._stale.items()
            if m in seen
        }
        guesses = self._guesses if how.policy.decides else {}
        wrong = {m: entered(off(seen[m].prediction, guess)) for m, guess in guesses.items()}
        gram, setting, unpaired = self._span.gram(rows), before.setting, before.unpaired
        if drafted:
            setting = partial(how.guess.hindsight, evidence, gram)
        if n in pairs:
            default = slope(how.space, how.carry, calls[n].sigma)
            unpaired = partial(roughness, gram, pairs[n], default, how.space, calls[n].sigma)
        return Findings(how.space, how.carry, calls, setting, unpaired, self._size, gram, wrong, pairs)

    def _guess(self, m: int, x: Combination, found: Findings) -> Parts:
        how, stale = self._how, self._stale.get(m)
        if stale is not None:
            return carried(stale, x, found.slope(m))
        return how.guess(how.space, self._known, found.setting(), x, self._calls[m].sigma)

    def _noise(self, q: int) -> Combination:
        if q not in self._noises:
            self._noises[q] = self._span.vector(self._tape[q])
        return self._noises[q]
