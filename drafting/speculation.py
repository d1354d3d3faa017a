# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that answers a sampler from drafts evaluated in parallel.

A k-diffusion sampler is a function that asks a model for D(x, sigma), again and again. The sampler is left alone and its
model replaced by :class:`SpeculativeModel`. Asked for D(x, sigma), it

1. looks whether a draft of this question was evaluated; if so, and it lies near enough, the answer is the draft's
   prediction carried over to x: one round saved;
2. else opens a window: it drafts the next k - 1 questions by running the same sampler over the next sigmas with a stand-in
   that answers by extrapolation, evaluates x and the drafts in parallel (one round), keeps the predictions, returns the first.

DRiffusion (arXiv 2603.25872) is this with the Euler sampler, eps frozen and eps carried, and drafts always accepted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .calls import Call, SamplerRun
from .coordinates import Space
from .noise import NoiseTape
from .policies import Policy
from .predictors import Basis, Following, Guess, Known, Trend, carry, carry_and_measure

HISTORY = 4
"""Answers kept: drafts begin with them, for the memory of multistep samplers, and extrapolate from them."""

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


class _Enough(BaseException):
    """All drafts of a window are made; no sampler catches this."""


def _rms(norm: Tensor, of: Tensor) -> float:
    """RMS of a tensor from its norm: the host waits here for the device."""
    return float(norm) / math.sqrt(of.numel())


class SpeculativeModel:
    """D(x, sigma) from drafts. Attributes it has not are the wrapped model's."""

    def __init__(
        self,
        model: Any,
        run: SamplerRun,
        calls: tuple[Call, ...],
        sigmas: Tensor,
        evaluate: Evaluate,
        deliver: Deliver,
        tape: NoiseTape,
        drafting: Drafting,
    ) -> None:
        self.calls, self.evaluate, self.tape = calls, evaluate, tape
        self._model, self._run, self._sigmas, self._deliver, self._how = model, run, sigmas, deliver, drafting
        self._asked = 0
        self._answers: dict[int, Known] = {}
        self._window: dict[int, tuple[Known, int, int]] = {}
        self._stale: dict[int, Known] = {}
        self._setting = drafting.guess.start
        self._roughness = 1.0
        self._strayed = 0.0
        self.report = Report()

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
        carried, norm = carry_and_measure(self._how.space, self._how.carry, known, x)
        distance = _rms(norm, x) / self._how.space.scale(known.sigma)
        deviation = self._roughness * distance
        accepted = self._how.policy.accepts(deviation)
        self.report.rounds[round_][slot] = Evaluated(n, deviation, accepted)
        if not accepted:
            self._stale = {n: known, **{m: later for m, (later, _, _) in self._window.items()}}
            self._strayed = distance
            self._window.clear()
            return None
        return carried

    def _learn(self, known: list[Known], last: Known | None, dropped: Known | None, here: Known) -> None:
        """What the predictions of a round say of the guesses before it: its best setting, and the model's roughness."""
        how = self._how
        if last is not None:
            self._setting = how.guess.hindsight(how.space, known, last)
        if dropped is not None and self._strayed > 0:
            error = here.prediction - carry(how.space, how.carry, dropped, here.x)
            off = _rms(torch.linalg.vector_norm(error), error) / how.space.sigma_data
            self._roughness = max(off / self._strayed, LEAST_ROUGHNESS)

    def _open_window(self, n: int, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        width = min(self._how.policy.width(len(self.report.rounds), len(self.calls) - n), self.evaluate.capacity)
        known = self._known()
        drafts = self._drafts(n, x, width - 1, known) if known else []
        dropped = self._stale.get(n)
        self._stale = {}
        states = [(x, self.calls[n].sigma), *((draft, self.calls[m].sigma) for m, draft in enumerate(drafts, n + 1))]
        predictions = self.evaluate(states, arguments)
        round_ = len(self.report.rounds)
        self.report.rounds.append([Evaluated(n + i) for i in range(len(states))])
        for slot in range(1, len(states)):
            self._window[n + slot] = (Known(*states[slot], predictions[slot]), round_, slot)
        last = self._window[n + len(drafts)][0] if drafts else None
        self._learn(known, last, dropped, Known(*states[0], predictions[0]))
        return predictions[0]

    def _drafts(self, n: int, x: Tensor, count: int, known: list[Known]) -> list[Tensor]:
        """The states of the ``count`` questions after the n-th: the sampler itself, run ahead with guessed answers."""
        calls, start = self.calls, min(self._answers)
        if count < 1:
            return []
        drafts: list[Tensor] = []
        offset = torch.zeros_like(x)
        asked = start

        def stand_in(state: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
            nonlocal asked, offset
            m, asked = asked, asked + 1
            if m < n:
                return self._deliver(self._answers[m].prediction, state, calls[m].sigma, arguments)
            if m == n:
                offset = state - x
            gain = calls[m].gain / calls[n].gain if calls[n].gain else 0.0
            here = torch.sub(state, offset, alpha=gain)
            if m > n:
                drafts.append(here)
                if len(drafts) == count:
                    raise _Enough
            return self._deliver(self._guess(known, m, here), state, calls[m].sigma, arguments)

        first = self._answers[start]
        sigmas = self._sigmas[calls[start].step :].clone()  # some samplers write into theirs
        with contextlib.suppress(_Enough):
            self._run(StandIn(self._model, stand_in), first.x, sigmas, None, self.tape.reader(calls[start].noises))
        return drafts

    def _known(self) -> list[Known]:
        """All predictions in hand, from high to low sigma; of several at one sigma the newest."""
        newest = {known.sigma: known for source in (self._answers, self._stale) for known in source.values()}
        return sorted(newest.values(), key=lambda known: -known.sigma)

    def _guess(self, known: list[Known], m: int, x: Tensor) -> Tensor:
        how = self._how
        if m in self._stale:
            return carry(how.space, how.carry, self._stale[m], x)
        return how.guess(how.space, known, self._setting, x, self.calls[m].sigma)

    def _forget(self, n: int) -> None:
        """Keep the last HISTORY answers, and what lies between them and the first question of their step."""
        starts = [m for m in self._answers if m == 0 or self.calls[m].step != self.calls[m - 1].step]
        keep = max((m for m in starts if m <= n - HISTORY + 1), default=min(starts))
        for m in [m for m in self._answers if m < keep]:
            del self._answers[m]
        self.tape.forget(self.calls[keep].noises)


class StandIn:
    """A model whose answers come from a function; everything else is the wrapped model's."""

    def __init__(self, model: Any, answer: Callable[..., Tensor]) -> None:
        self._model, self._answer = model, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
        return self._answer(x, sigma, **arguments)
