# SPDX-License-Identifier: GPL-3.0-or-later
"""One window: the states to evaluate in a round, and what their predictions tell.

Drafts, and the states at which the sampler will arrive once the predictions are known, are linear combinations of what is in hand.
So is every error that tells something. One matrix of inner products, read once, holds it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from .calls import Call
from .coordinates import Space
from .noise import NoiseTape
from .policies import Policy
from .predictors import Basis, Following, Guess, Trend, carried, off
from .span import Combination, Combined, Known, Parts, Span, combine, less

LEAST_ROUGHNESS = 0.25
"""Predictions are never taken to differ less than this part of how far their states are apart."""


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
        """What deviates least: eps of a smooth trajectory is extrapolated; eps at a state with fresh noise contains that noise,
        so there the newest prediction follows the state by a learned share."""
        return cls(policy, Following() if stochastic else Trend((2, 3, 1)), "F", space)


@dataclass(frozen=True)
class Findings:
    """What the rounds so far tell. The host waits for the device when the first of a round's is asked for."""

    setting: Callable[[], float]
    """Of the guess: the one that would have guessed best."""
    roughness: Callable[[], float]
    """How much further than its state is from the sampler's, relative to data, a dropped draft's prediction was off in truth."""
    distance: Callable[[int], float]
    """RMS(x - x~) / s of a question of the last window: how far from its draft the sampler will arrive. Only where drafts are verified."""


class Window:
    """From the n-th question on, which the sampler asks at x.

    ``answers`` are those on which states to come may depend; ``stale`` are predictions at drafts that were dropped, by question.
    """

    def __init__(self, how: Drafting, calls: Sequence[Call], tape: NoiseTape, n: int, x: Tensor,
                 answers: dict[int, Known], stale: dict[int, Known]) -> None:
        self._how, self._calls, self._tape, self._n, self._count = how, calls, tape, n, x.numel()
        self._span = span = Span()
        self._answers = {i: span.known(answer) for i, answer in answers.items()}
        self._stale = {m: span.known(each) for m, each in stale.items()}
        self._known = newest([*self._answers.values(), *self._stale.values()])
        self._noises: dict[int, Combination] = {}
        self._x = [span.vector(x)]

    def drafts(self, count: int, found: Findings) -> list[Tensor]:
        """The states of the next ``count`` questions from guessed answers; none where nothing is known to guess from."""
        if not self._known or not count:
            return []
        asked = dict(self._answers)
        for m in range(self._n, self._n + count):
            asked[m] = Combined(self._x[-1], self._calls[m].sigma, self._guess(m, self._x[-1], found))
            self._x.append(self._state(m + 1, asked))
        return list(self._span.evaluate(self._x[1:]))

    def findings(self, before: Findings, predictions: Sequence[Tensor]) -> Findings:
        """What the ``predictions`` at x and at the drafts tell; about what they do not, the findings ``before``."""
        how, n, calls, count = self._how, self._n, self._calls, self._count
        seen = [Combined(x, calls[m].sigma, tuple(map(self._span.vector, prediction)))
                for m, (x, prediction) in enumerate(zip(self._x, predictions, strict=True), n)]
        hindsight = how.guess.hindsight(how.space, self._known, seen[-1]) if len(seen) > 1 else None
        dropped = self._stale.get(n)
        vectors: dict[Any, Parts] = dict(hindsight.evidence) if hindsight else {}
        if how.policy.decides:
            vectors |= self._offsets(seen)
        if dropped:
            vectors["error"] = off(seen[0].prediction, carried(how.space, how.carry, dropped, self._x[0]))
        inner = self._span.inner(vectors)

        # What outlives the window holds numbers, and none of its latents.
        def rms(name: Any) -> float:
            return math.sqrt(inner(name, name) / (len(vectors[name]) * count))

        def roughness(distance: float) -> float:
            return max(rms("error") / (distance * how.space.sigma_data), LEAST_ROUGHNESS)

        return Findings(
            setting=partial(hindsight.setting, inner) if hindsight else before.setting,
            roughness=partial(roughness, before.distance(n)) if dropped else before.roughness,
            distance=lambda m: rms(m) / how.space.scale(calls[m].sigma))

    def _offsets(self, seen: Sequence[Combined]) -> dict[int, Parts]:
        """x - x~ of every question drafted, where the sampler stands at x once its answers are the predictions ``seen``."""
        how, asked = self._how, {**self._answers, self._n: seen[0]}
        offsets: dict[int, Parts] = {}
        for m, draft in enumerate(seen[1:], self._n + 1):
            x = self._state(m, asked)
            offsets[m] = (less(x, draft.x),)
            asked[m] = Combined(x, draft.sigma, carried(how.space, how.carry, draft, x))
        return offsets

    def _guess(self, m: int, x: Combination, found: Findings) -> Parts:
        how, stale = self._how, self._stale.get(m)
        if stale is not None:
            return carried(how.space, how.carry, stale, x)
        return how.guess(how.space, self._known, found.setting(), x, self._calls[m].sigma)

    def _state(self, m: int, asked: dict[int, Combined]) -> Combination:
        """x_m as its :class:`~.calls.Call` combines it; a prediction of one part is both denoised and uncond."""
        call = self._calls[m]
        states = [(call.kept, asked[m - 1].x), *((u, asked[i].x) for i, u in call.states)]
        answers = [(w, asked[i].prediction[min(part, len(asked[i].prediction) - 1)]) for i, part, w in call.answers]
        return combine([*states, *answers, *((v, self._noise(q)) for q, v in call.draws)])

    def _noise(self, q: int) -> Combination:
        if q not in self._noises:
            self._noises[q] = self._span.vector(self._tape[q])
        return self._noises[q]


def newest(known: Sequence[Combined]) -> list[Combined]:
    """From high to low sigma; of several at one sigma the last given."""
    return sorted({each.sigma: each for each in known}.values(), key=lambda each: -each.sigma)
