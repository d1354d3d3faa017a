# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that answers a sampler from drafts evaluated in parallel.

A k-diffusion sampler is a function that asks a model for D(x, sigma), again and again. The sampler is left
alone and its model replaced by :class:`SpeculativeModel`. Asked for D(x, sigma), it

1. looks whether a draft of this question was evaluated; if so, and it lies near enough, the answer is the
   draft's
   prediction carried over to x: one round saved;
2. else opens a window: it drafts the states of the next k - 1 questions, as the sampler will combine them
   (``calls``), from answers that it extrapolates, evaluates x and the drafts in parallel (one round), keeps
   the predictions, returns the first (``window``).

DRiffusion (arXiv 2603.25872) is this with the Euler sampler, eps frozen and eps carried, and drafts always
accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.carry import carry
from .calls import Plan
from .findings import Findings
from .noise import NoiseTape
from .span import Known, newest
from .window import Drafting, Window

HISTORY = 4
"""Sigmas at which the newest answer is kept: drafts extrapolate from them."""

State = tuple[Tensor, float]
Deliver = Callable[[Tensor, Tensor, float, dict[str, Any]], Tensor]
"""(prediction, x, sigma, the call's arguments) -> what the sampler gets."""


class Evaluate(Protocol):
    """Where states are evaluated: the only thing that knows about hardware."""

    @property
    def capacity(self) -> int:
        """States the next round may hold."""

    def __call__(self, states: list[State], arguments: dict[str, Any], /) -> list[Tensor]:
        """Predictions [P, ...] at states (x, sigma), in parallel; P is 1, or 2 where the sampler needs uncond
        too.
        """


@dataclass(frozen=True)
class Evaluated:
    """One state of a round: question ``call``; how far the sampler arrived from it (None: it stood there, or
    never arrived).
    """

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

    def __init__(
        self,
        model: Any,
        plan: Plan,
        evaluate: Evaluate,
        deliver: Deliver,
        tape: NoiseTape,
        drafting: Drafting,
    ) -> None:
        self.plan, self.calls, self.evaluate, self.tape = plan, plan.calls, evaluate, tape
        self._model, self._deliver, self._how = model, deliver, drafting
        self._asked = 0
        self._answers: dict[int, Known] = {}
        self._window: dict[int, Known] = {}
        self._stale: dict[int, Known] = {}
        self._found = Findings(drafting.space, drafting.carry, plan.calls, lambda: drafting.guess.start)
        self._report = Report()
        self._used: list[tuple[int, Tensor, float, Findings]] = []

    @property
    def report(self) -> Report:
        """What happened so far. Drafts that were used have the deviation measured where the sampler did
        arrive.
        """
        used, self._used = self._used, []
        norms = torch.stack([norm for _, norm, _, _ in used]).tolist() if used else []
        for (n, _, unit, found), norm in zip(used, norms, strict=True):
            self._enter(n, found.roughness(n) * norm / unit, True)
        return self._report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
        n = self._asked
        self._asked += 1
        prediction = self._from_window(n, x)
        if prediction is None:
            prediction = self._open_window(n, x, arguments)
        self._answers[n] = Known(x, self.calls[n].sigma, prediction)
        self._forget(n)
        return self._deliver(prediction, x, self.calls[n].sigma, arguments)

    def _from_window(self, n: int, x: Tensor) -> Tensor | None:
        """The prediction of a draft of this question, carried to x, if there is one and it lies near enough.

        Its deviation is how far that may be off, relative to the data, as far as one can know without an
        evaluation at x: RMS(x - x~) / s, which bounds it for Gaussian data, times the roughness of what was
        found.
        """
        if n not in self._window:
            return None
        how, found = self._how, self._found
        if how.policy.decides and not how.policy.accepts(deviation := found.roughness(n) * found.distance(n)):
            self._enter(n, deviation, False)
            self._stale, self._window = self._window, {}
            return None
        known = self._window.pop(n)
        prediction, norm = carry(known.prediction, known.x, x, found.slope(n))
        self._used.append((n, norm, math.sqrt(x.numel()) * how.space.scale(known.sigma), found))
        return prediction

    def _open_window(self, n: int, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        width = min(
            self._how.policy.width(len(self._report.rounds), len(self.calls) - n), self.evaluate.capacity
        )
        window = Window(self._how, self.calls, self.tape, n, x, self._answers, self._stale)
        drafts = window.drafts(width - 1, self._found)
        states = [(state, self.calls[m].sigma) for m, state in enumerate([x, *drafts], n)]
        predictions = self.evaluate(states, arguments)
        self._report.rounds.append([Evaluated(n + i) for i in range(len(states))])
        self._found = window.findings(self._found, predictions)
        self._window = {n + i: Known(*states[i], predictions[i]) for i in range(1, len(states))}
        self._stale = {}
        return predictions[0]

    def _enter(self, n: int, deviation: float, accepted: bool) -> None:
        """Into the report: what became of the newest draft of a question."""
        states = next(states for states in reversed(self._report.rounds) if states[0].call < n)
        states[n - states[0].call] = Evaluated(n, deviation, accepted)

    def _forget(self, n: int) -> None:
        """Keep the answers and noises on which states to come depend, and the newest answers at the last
        HISTORY sigmas.
        """
        answer, noise = self.plan.oldest(n)
        known = {id(each) for each in newest([*self._answers.values()])[-HISTORY:]}
        for m in [m for m, each in self._answers.items() if m < answer and id(each) not in known]:
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
