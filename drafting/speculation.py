# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that answers a sampler from drafts evaluated in parallel.

A k-diffusion sampler is a function that asks a model for D(x, sigma), again and again. The sampler is left alone and its
model replaced by :class:`SpeculativeModel`. Asked for D(x, sigma), it

1. looks whether a draft of this question was evaluated; if so, and it lies near enough, the answer is the draft's
   prediction carried over to x: one round saved;
2. else opens a window: it drafts the states of the next k - 1 questions, as the sampler will combine them (``calls``), from
   answers that it extrapolates, evaluates x and the drafts in parallel (one round), keeps the predictions, returns the first.

DRiffusion (arXiv 2603.25872) is this with the Euler sampler, eps frozen and eps carried, and drafts always accepted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .calls import Plan
from .coordinates import Space
from .noise import NoiseTape
from .policies import Policy
from .predictors import Basis, Following, Guess, Setting, Trend, carried, carry
from .span import Combination, Combined, Known, Span, combine

HISTORY = 4
"""Answers kept at least: drafts extrapolate from them."""

LEAST_ROUGHNESS = 0.25
"""Predictions are never taken to differ less than this part of how far their states are apart."""

State = tuple[Tensor, float]
Deliver = Callable[[Tensor, Tensor, float, dict[str, Any]], Tensor]
"""(prediction, x, sigma, the call's arguments) -> what the sampler gets."""


class Evaluate(Protocol):
    """Where states are evaluated: the only thing that knows about hardware."""

    @property
    def capacity(self) -> int:
        """States the next round may hold."""

    def __call__(self, states: list[State], arguments: dict[str, Any], /) -> list[Tensor]:
        """Predictions [P, ...] at states (x, sigma), in parallel; P is 1, or 2 where the sampler needs uncond too."""


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
class Evaluated:
    """One state of a round: question ``call``; how far the sampler arrived from it (None: it stood there, or never arrived)."""

    call: int
    deviation: float | None = None
    accepted: bool | None = None


@dataclass
class Report:
    """What happened: for every round its states, the first of which is where the sampler stood."""

    rounds: list[list[Evaluated]] = field(default_factory=list)

    @property
    def evaluations(self) -> int:
        return sum(len(states) for states in self.rounds)

    @property
    def rejections(self) -> int:
        return sum(state.accepted is False for states in self.rounds for state in states)

    @property
    def largest_deviation(self) -> float:
        """Of the drafts that were used."""
        return max((s.deviation or 0.0 for states in self.rounds for s in states if s.accepted), default=0.0)


class SpeculativeModel:
    """D(x, sigma) from drafts. Attributes it has not are the wrapped model's."""

    def __init__(self, model: Any, plan: Plan, evaluate: Evaluate, deliver: Deliver, tape: NoiseTape, drafting: Drafting) -> None:
        self.plan, self.calls, self.evaluate, self.tape = plan, plan.calls, evaluate, tape
        self._model, self._deliver, self._how = model, deliver, drafting
        self._asked = 0
        self._answers: dict[int, Known] = {}
        self._window: dict[int, tuple[Known, int, int]] = {}
        self._stale: dict[int, Known] = {}
        self._setting: Setting = lambda: drafting.guess.start
        self._roughness: Setting = lambda: 1.0
        self._strayed = 0.0
        self._report = Report()
        self._unread: list[Callable[[], bool]] = []

    @property
    def report(self) -> Report:
        """What happened so far."""
        for read in self._unread:
            read()
        self._unread.clear()
        return self._report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
        n = self._asked
        self._asked += 1
        call = self.calls[n]
        prediction = self._from_window(n, x)
        if prediction is None:
            prediction = self._open_window(n, x, arguments)
        self._answers[n] = Known(x, call.sigma, prediction)
        self._forget(n)
        return self._deliver(prediction, x, call.sigma, arguments)

    def _from_window(self, n: int, x: Tensor) -> Tensor | None:
        """The prediction of a draft of this question, carried to x, if there is one and it lies near enough.

        Its deviation is how far that may be off, relative to the data, as far as one can know before evaluating at x:
        RMS(x - x~) / s, which bounds it for Gaussian data, times the model's roughness: how much further than that the last
        dropped draft was off in truth, which the evaluation in its place has shown.
        """
        if n not in self._window:
            return None
        known, round_, slot = self._window.pop(n)
        prediction, norm = carry(self._how.space, self._how.carry, known, x)
        scale, count, roughness = self._how.space.scale(known.sigma), x.numel(), self._roughness

        def verdict() -> bool:
            self._strayed = float(norm) / math.sqrt(count) / scale
            deviation = roughness() * self._strayed
            accepted = self._how.policy.accepts(deviation)
            self._report.rounds[round_][slot] = Evaluated(n, deviation, accepted)
            return accepted

        if not self._how.policy.decides:
            self._unread.append(verdict)
        elif not verdict():
            self._stale = {n: known, **{m: later for m, (later, _, _) in self._window.items()}}
            self._window.clear()
            return None
        return prediction

    def _learn(self, known: list[Known], last: Known | None, dropped: Known | None, here: Known) -> None:
        """What the predictions of a round say of the guesses before it: its best setting, and the model's roughness."""
        how = self._how
        if last is not None:
            self._setting = how.guess.hindsight(how.space, known, last)
        if dropped is not None and self._strayed > 0:
            error = here.prediction - carry(how.space, how.carry, dropped, here.x)[0]
            off, reach = torch.linalg.vector_norm(error), self._strayed * how.space.sigma_data * math.sqrt(error.numel())
            self._roughness = functools.cache(lambda: max(float(off) / reach, LEAST_ROUGHNESS))

    def _open_window(self, n: int, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        width = min(self._how.policy.width(len(self._report.rounds), len(self.calls) - n), self.evaluate.capacity)
        known = self._known()
        drafts = self._drafts(n, x, width - 1, known) if known else []
        dropped = self._stale.get(n)
        self._stale = {}
        states = [(x, self.calls[n].sigma), *((draft, self.calls[m].sigma) for m, draft in enumerate(drafts, n + 1))]
        predictions = self.evaluate(states, arguments)
        round_ = len(self._report.rounds)
        self._report.rounds.append([Evaluated(n + i) for i in range(len(states))])
        for slot in range(1, len(states)):
            self._window[n + slot] = (Known(*states[slot], predictions[slot]), round_, slot)
        last = self._window[n + len(drafts)][0] if drafts else None
        self._learn(known, last, dropped, Known(*states[0], predictions[0]))
        return predictions[0]

    def _drafts(self, n: int, x: Tensor, count: int, known: list[Known]) -> list[Tensor]:
        """The states of the ``count`` questions after the n-th, as the sampler combines them, from guessed answers."""
        span, how = Span(), self._how
        nodes = [span.known(each) for each in known]
        asked = {i: span.known(answer) for i, answer in self._answers.items()}
        at, drafts = span.vector(x), []
        for m in range(n, n + count):
            stale, sigma = self._stale.get(m), self.calls[m].sigma
            if stale is not None:
                guess = carried(how.space, how.carry, span.known(stale), at)
            else:
                guess = how.guess(how.space, nodes, self._setting(), at, sigma)
            asked[m] = Combined(at, sigma, guess)
            at = self._state(m + 1, asked, span)
            drafts.append(at)
        return list(span.evaluate(drafts)) if drafts else []

    def _state(self, m: int, asked: dict[int, Combined], span: Span) -> Combination:
        """x_m as its :class:`~.calls.Call` combines it; a prediction of one part is both denoised and uncond."""
        call = self.calls[m]
        states = [(call.kept, asked[m - 1].x), *((u, asked[i].x) for i, u in call.states)]
        answers = [(w, asked[i].prediction[min(part, len(asked[i].prediction) - 1)]) for i, part, w in call.answers]
        return combine([*states, *answers, *((v, span.vector(self.tape[q])) for q, v in call.draws)])

    def _known(self) -> list[Known]:
        """All predictions in hand, from high to low sigma; of several at one sigma the newest."""
        newest = {known.sigma: known for source in (self._answers, self._stale) for known in source.values()}
        return sorted(newest.values(), key=lambda known: -known.sigma)

    def _forget(self, n: int) -> None:
        """Keep the answers and noises on which states to come depend, and the last HISTORY answers."""
        answer, noise = self.plan.oldest(n)
        for m in [m for m in self._answers if m < min(answer, n - HISTORY + 1)]:
            del self._answers[m]
        self.tape.forget(noise)


class StandIn:
    """A model whose answers come from a function; everything else is the wrapped model's."""

    def __init__(self, model: Any, answer: Callable[..., Tensor]) -> None:
        self._model, self._answer = model, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
        return self._answer(x, sigma, **arguments)
