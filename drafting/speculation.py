# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that answers a sampler from drafts evaluated in parallel.

A k-diffusion sampler is a function that calls a model D(x, sigma), again and again. The sampler is left alone
and its model replaced by :class:`SpeculativeModel`. Called for D(x, sigma), it

1. looks whether a draft of this model call was evaluated; if so, and it lies near enough, the draft's
   prediction is carried over to x and returned: one round saved;
2. else opens a window: it drafts the states of the next k - 1 calls, as the sampler will combine them (its
   trace), from predictions that it extrapolates, evaluates x and the drafts in parallel (one round), keeps
   the predictions, returns the first (``window``).

DRiffusion (arXiv 2603.25872) is this with the Euler sampler, eps frozen and eps carried, and drafts always
accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common.sampler_trace import Trace
from ..kernels.carry import carry
from .combination import Evaluation, newest_per_sigma
from .errors import Undraftable
from .noise import NoiseTape
from .report import Report, ReportedCall
from .statistics import RoundStatistics
from .window import Drafting, Position, Window

HISTORY = 4
"""Sigmas whose newest prediction is kept: drafts extrapolate from them."""


@dataclass(frozen=True)
class State:
    """Where a prediction is wanted: x [B, ...] at sigma. given: the sampler's own sigma [B]; drafts have
    none.
    """

    x: Tensor
    sigma: float
    given: Tensor | None = None

    @property
    def sigmas(self) -> Tensor:
        """[B]."""
        return self.x.new_full([self.x.shape[0]], self.sigma) if self.given is None else self.given


Deliver = Callable[[Tensor, Tensor, float, dict[str, Any]], Tensor]
"""(prediction, x, sigma, the model call's arguments) -> what the sampler gets."""


@dataclass(frozen=True)
class Arrival:
    """The prediction [P, ...] of a far draft, the device that made it, and the rounds it took."""

    state: State
    prediction: Tensor
    device: str
    rounds: int


class Evaluate(Protocol):
    """Where states are evaluated: the only thing that knows about hardware."""

    @property
    def capacity(self) -> int:
        """States the next round may hold."""

    @property
    def drafting(self) -> bool:
        """Whether the next round may hold drafts."""

    @property
    def evaluated_on(self) -> Sequence[str]:
        """The device of each state of the last round; none where there is one device."""

    def prepare(self, arguments: dict[str, Any], /) -> Sequence[int]:
        """Called before drafts are chosen. For every device that may now begin a far draft, whose prediction
        comes with a later round: how many calls ahead of the sampler that is to be; the nearest first.
        """

    def begin(self, drafts: Mapping[int, State], arguments: dict[str, Any], /) -> None:
        """Begin these far drafts, by call, together with the next round: a device each, as they were
        prepared.
        """

    def due(self) -> Mapping[int, State]:
        """Far drafts whose predictions come with the next round, by call."""

    def arrived(self) -> Mapping[int, Arrival]:
        """Far drafts that came with the last round, by call."""

    def __call__(self, states: list[State], arguments: dict[str, Any], /) -> list[Tensor]:
        """Predictions [P, ...] at the states, or at the first few of them, in parallel; P is 1, or 2 where
        the sampler needs uncond.
        """


class SpeculativeModel:
    """D(x, sigma) from drafts. Attributes it has not are the wrapped model's."""

    def __init__(
        self,
        model: Any,
        trace: Trace,
        *,
        evaluate: Evaluate,
        deliver: Deliver,
        noises: NoiseTape,
        drafting: Drafting,
        shape: torch.Size,
    ) -> None:
        self.trace, self.calls, self.evaluate, self.noises = trace, trace.calls, evaluate, noises
        self._model, self._deliver, self._how = model, deliver, drafting
        self._made, self._shape = 0, shape
        self._known: dict[int, Evaluation] = {}
        self._window: dict[int, Evaluation] = {}
        self._dropped: dict[int, Evaluation] = {}
        self._late: dict[int, Evaluation] = {}
        self._begun: set[int] = set()
        predictor = drafting.drafts.predictor
        self._statistics = RoundStatistics(
            drafting.space, drafting.drafts.carry, trace.calls, lambda: predictor.start
        )
        self._report = Report()
        self._used: list[tuple[int, Tensor, float, RoundStatistics]] = []

    @property
    def report(self) -> Report:
        """What happened so far. Drafts that were used have the deviation measured where the sampler did
        arrive.
        """
        used, self._used = self._used, []
        norms = torch.stack([norm for _, norm, _, _ in used]).tolist() if used else []
        for (n, _, unit, statistics), norm in zip(used, norms, strict=True):
            deviation = statistics.lipschitz(n) * norm / unit + statistics.interpolation_error(n)
            if len(statistics.pieces) > 1 and self._how.policy.verifies:
                deviation = max(deviation, statistics.deviation(n))
            self._report.settle(n, deviation, True)
        return self._report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
        n = self._made
        self._made += 1
        if n == len(self.calls) or x.shape != self._shape:
            raise Undraftable("it steps otherwise than in its dry run")
        prediction = self._from_window(n, x)
        while prediction is None:
            self._open_window(n, x, sigma, arguments)
            prediction = self._from_window(n, x)
        self._known[n] = prediction
        self._forget(n)
        return self._deliver(prediction.prediction, x, self.calls[n].sigma, arguments)

    def _from_window(self, n: int, x: Tensor) -> Evaluation | None:
        """The prediction of a draft of this call, carried to x, if there is one and it lies near enough."""
        if n not in self._window:
            return None
        how, statistics, found = self._how, self._statistics, self._window[n]
        drafted = found.interpolated or found.x is not x
        if drafted and how.policy.verifies and not how.policy.accepts(deviation := statistics.deviation(n)):
            self._report.settle(n, deviation, False)
            dropped, self._window = self._window, {}
            self._late |= {m: each for m, each in dropped.items() if m in self._begun}
            self._dropped = {
                m: each for m, each in dropped.items() if not each.interpolated and m not in self._late
            }
            return None
        del self._window[n]
        if not drafted:
            return found
        prediction, norm = carry(found.prediction, found.x, x, statistics.dD_dx(n))
        unit = math.sqrt(x.numel()) * how.space.scale(found.sigma)
        self._used.append((n, norm, unit, statistics))
        return replace(found, x=x, prediction=prediction)

    def _open_window(self, n: int, x: Tensor, sigma: Tensor, arguments: dict[str, Any]) -> None:
        width = self._how.policy.width(len(self._report.rounds), len(self.calls) - n)
        drafting = self.evaluate.drafting and bool(self._known) and width > 1
        ahead = self.evaluate.prepare(arguments) if drafting else ()
        window = Window(self._how, self.trace, self.noises, self._position(n, x))
        width = min(width, self.evaluate.capacity)
        evaluated = window.evaluated(width, self._statistics, self.evaluate.drafting)
        far = window.far(evaluated, ahead, self._begun)
        drafts = window.states([*evaluated, *far], self._statistics)
        states = {
            m: State(at, self.calls[m].sigma, sigma if m == n else None)
            for m, at in zip([*evaluated, *far], drafts, strict=True)
        }
        self._begun.update(far)
        self.evaluate.begin({m: states[m] for m in far}, arguments)
        predictions = self.evaluate([states[m] for m in evaluated], arguments)
        self._take(window, evaluated[: len(predictions)], predictions)
        self._statistics = window.statistics(self._statistics)
        self._dropped = {}

    def _position(self, n: int, x: Tensor) -> Position:
        self._late = {m: each for m, each in self._late.items() if m >= n}
        due = {m: state.x for m, state in self.evaluate.due().items() if m > n}
        return Position(n, x, self._known, self._dropped, self._report.skips, late=self._late, due=due)

    def _take(self, window: Window, evaluated: Sequence[int], predictions: Sequence[Tensor]) -> None:
        """Take what a round made, with the far drafts that came with it, and report it."""
        arrived, devices = (
            self.evaluate.arrived(),
            dict(zip(evaluated, self.evaluate.evaluated_on, strict=False)),
        )
        came = {m: Evaluation(each.state.x, each.state.sigma, each.prediction) for m, each in arrived.items()}
        late = self._late | {m: each for m, each in came.items() if m > evaluated[0]}
        self._window = window.take(evaluated, predictions, late)
        self._late = {m: each for m, each in late.items() if m not in self._window}
        reported = [
            ReportedCall(m, interpolated=each.interpolated, device=devices.get(m, ""))
            for m, each in self._window.items()
            if each is not late.get(m)
        ]
        reported += [ReportedCall(m, device=each.device, rounds=each.rounds) for m, each in arrived.items()]
        self._report.rounds.append(sorted(reported, key=lambda each: each.call))

    def _forget(self, n: int) -> None:
        """Keep what states to come depend on, and the newest predictions at the last HISTORY sigmas."""
        oldest_prediction, oldest_noise = self.trace.oldest(n)
        evaluated = [each for each in self._known.values() if not each.interpolated]
        newest = {id(each) for each in newest_per_sigma(evaluated, self.trace.rising)[-HISTORY:]}
        for m in [m for m, each in self._known.items() if m < oldest_prediction and id(each) not in newest]:
            del self._known[m]
        self.noises.forget(oldest_noise)


class StandIn:
    """A model whose predictions come from a function; everything else is the wrapped model's."""

    def __init__(self, model: Any, predict: Callable[..., Tensor]) -> None:
        self._model, self._predict = model, predict

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
        return self._predict(x, sigma, **arguments)
