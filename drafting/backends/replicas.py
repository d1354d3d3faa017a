# SPDX-License-Identifier: GPL-3.0-or-later
"""A state a device: core's replicas of the model, in core's threads."""

from __future__ import annotations

import copy
import itertools
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..allotment import VERIFIED_USE, Allotment, Far, allot, speed_class
from ..errors import MainDeviceOnly, Undraftable
from ..speculation import Arrival, State
from ..verdicts import Verdict
from .base import Backend, Request
from .compare import compute_dtype, disagreement, rtol
from .graph import CLONES, THREAD_POOL, foreign, holder_of_network, same_conditions
from .workers import Answer, Workers

MEASURED = 3
"""Calls by which a device that seems slower or faster than the model's own is measured; others by one."""


@dataclass
class Flight:
    """A far draft that a device evaluates meanwhile: of how many rounds, and how many are left."""

    call: int
    state: State
    answer: queue.SimpleQueue[Answer[list[Tensor]]]
    rounds: int
    left: int


class Replicas(Backend):
    """Predictions of the whole guider, on every device as many as it has time for.

    Core's per-device path is used with a single device named: it moves conditioning, takes the device's
    ControlNets and brings the prediction back. Before the first draft every device predicts the last state
    again, beside the main device. One that fails, or predicts otherwise, is left out from then on. Then each
    is timed, once a graph: what it evaluates follows from these speeds (``allotment``), which are kept.
    """

    def __init__(self, request: Request, width: int) -> None:
        super().__init__(request, width or len(request.options[CLONES]))
        self._clones, self._workers = request.options[CLONES], Workers(request.options[THREAD_POOL])
        self._places = list(self._clones)
        self._main = self._places[0]
        self._models = {place: _own_guider(request.model) for place in self._places}
        self._tell_shapes()
        self._asked_width = width
        self._alone = foreign(request.model, request.options) is None
        self._plan: Allotment | None = None
        self._flights: dict[torch.device, Flight] = {}
        self._arrived: dict[int, Arrival] = {}

    @classmethod
    def refusal(cls, request: Request) -> Undraftable | None:
        clones, pool = request.options.get(CLONES), request.options.get(THREAD_POOL)
        if not clones or pool is None or len(clones) < 2:
            return Undraftable("there is one device, which evaluates one state at a time")
        if holder := holder_of_network(request.model, request.options):
            return MainDeviceOnly(f"{holder} works on the network of the main device alone")
        return None

    @classmethod
    def make(cls, request: Request) -> Replicas:
        return cls(request, request.states_a_round)

    @property
    def places(self) -> int:  # type: ignore[override]
        return len(self._places)

    def __str__(self) -> str:
        used = self._plan.used if self._plan else range(len(self._places))
        return ", ".join(str(place) for i, place in enumerate(self._places) if i in used)

    def may_skip(self, before: float, sigma: float, behind: float) -> bool:
        return self._alone and same_conditions(self.request.model, (before, sigma, behind))

    def prepare(self, arguments: dict[str, Any]) -> Sequence[int]:
        self._before_drafts(arguments)
        return [far.ahead for _, far in self._free()]

    def begin(self, drafts: Mapping[int, State], arguments: dict[str, Any]) -> None:
        for (place, far), (call, state) in zip(self._free(), drafts.items(), strict=False):
            answer = self._workers.start(place, self._share, place, [state], arguments)
            self._flights[place] = Flight(call, state, answer, far.rounds, far.rounds)

    def due(self) -> Mapping[int, State]:
        return {flight.call: flight.state for flight in self._flights.values() if flight.left == 1}

    def arrived(self) -> Mapping[int, Arrival]:
        return self._arrived

    def close(self, result: Tensor | None) -> None:
        while self._flights:
            place, flight = self._flights.popitem()
            self._workers.wait(place, flight.answer)

    def _free(self) -> list[tuple[torch.device, Far]]:
        """Devices that may begin a far draft now."""
        plan = [(self._places[far.device], far) for far in self._plan.far] if self._plan else []
        return [(place, far) for place, far in plan if place not in self._flights]

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        near = self._plan.near if self._plan else range(len(self._places))
        on = [self._places[i] for i in itertools.islice(itertools.cycle(near), len(states))]
        shares = {place: [i for i, at in enumerate(on) if at == place] for place in dict.fromkeys(on)}
        busy = {
            place: self._workers.start(place, self._share, place, [states[i] for i in share], arguments)
            for place, share in shares.items()
            if place != self._main
        }
        predictions: dict[int, Tensor] = {}
        try:
            for i in shares.get(self._main, ()):
                predictions[i] = super().evaluate([states[i]], arguments)[0]
        finally:
            answers = {place: self._workers.wait(place, answer) for place, answer in busy.items()}
        for place, (result, error) in answers.items():
            if result is not None:
                predictions.update(zip(shares[place], result, strict=True))
                continue
            self._fail(place, error)
            for i in shares[place]:
                predictions[i] = super().evaluate([states[i]], arguments)[0]
                on[i] = self._main
        self.evaluated_on = [str(place) for place in on]
        self._land()
        return [predictions[i] for i in range(len(states))]

    def _land(self) -> None:
        """Take the far drafts that come with this round, whether or not their devices were done before."""
        self._arrived = {}
        for place, flight in list(self._flights.items()):
            flight.left -= 1
            if flight.left:
                continue
            del self._flights[place]
            result, error = self._workers.wait(place, flight.answer)
            if result is None:
                self._fail(place, error)
            else:
                self._arrived[flight.call] = Arrival(flight.state, result[0], str(place), flight.rounds)

    def check(self, arguments: dict[str, Any]) -> None:
        known = self._verdict or Verdict()
        if self._last is None:
            return
        others, (state, prediction) = self._places[1:], self._last
        if not self.checked:
            self._compare(state, prediction, arguments)
        speeds, call_s = dict(known.speeds), known.call_s
        if not {str(place) for place in self._places} <= speeds.keys():
            measured, call_s = self._measure(state, arguments)
            speeds = measured | speeds
        everyone = len(self._places) == 1 + len(others)  # who was left out is to be found out again
        self.found(Verdict(passed=everyone, speeds=speeds, call_s=call_s))
        self._allot()
        self._tell()

    def _compare(self, state: State, prediction: Tensor, arguments: dict[str, Any]) -> None:
        """Leave out who predicts another ``prediction`` at the state than the main device did."""
        busy = {
            place: self._workers.start(place, self._share, place, [state], arguments)
            for place in self._places[1:]
        }
        limit = rtol(compute_dtype(self.request.guider))
        for place, answer in busy.items():
            result, error = self._workers.wait(place, answer)
            if result is None:
                self._fail(place, error)
            elif not (off := disagreement(result[0], prediction)) <= limit:
                self._leave_out(
                    place,
                    f"{place} predicts otherwise than {self._main} does (off by {off:.1e} of a prediction): "
                    "a patch, the model or the driver differs there",
                )

    def _measure(self, state: State, arguments: dict[str, Any]) -> tuple[dict[str, float], float]:
        """Speeds in classes relative to the main device, by name, and the seconds of the fastest's call.

        All are timed at the same time, as they evaluate in a round. What disturbs a call makes it longer, so
        that the shortest counts.
        """
        best: dict[torch.device, float] = {}
        for _ in range(MEASURED):
            busy = {
                place: self._workers.start(place, self._seconds, place, state, arguments)
                for place in self._places
            }
            for place, answer in busy.items():
                seconds, error = self._workers.wait(place, answer)
                if seconds is None:
                    self._fail(place, error)
                else:
                    best[place] = max(min(seconds, best.get(place, seconds)), 1e-9)
            speeds = {str(place): speed_class(best[self._main] / each) for place, each in best.items()}
            if set(speeds.values()) == {1.0}:
                break
        return speeds, min(best.values())

    def _seconds(self, place: torch.device, state: State, arguments: dict[str, Any]) -> float:
        """Of a model call, until its prediction is there."""
        started = self.request.clock()
        (prediction,) = self._share(place, [state], arguments)
        prediction.flatten()[0].item()
        return self.request.clock() - started

    def _allot(self) -> None:
        """Give out the states to the devices that are left, by what is kept of their speeds."""
        verdict, verified = self._verdict or Verdict(), self.request.verified
        known = {str(place): verdict.speeds.get(str(place), 1.0) for place in self._places}
        first = max(known, key=lambda name: known[name])
        self.speeds = {name: speed / known[first] for name, speed in known.items()}
        self.fastest = first, verdict.call_s
        speeds = list(self.speeds.values())
        if not self._alone:  # patches are watched where the model's own device evaluates
            speeds[0] = 1.0
        use, far = (VERIFIED_USE, self._alone) if verified else (1.0, False)
        self._plan = allot(speeds, width=self._asked_width, use=use, far=far)
        self.width = len(self._plan.near)

    def _tell(self) -> None:
        """Say which devices take no part, and why."""
        for i, (name, speed) in enumerate(self.speeds.items()):
            if self._plan is not None and i not in self._plan.used and speed < 1:
                self.request.inform(
                    f"{name} evaluates nothing: a call takes {1 / speed:.2g} times as long there as on "
                    f"{self.fastest[0]}, and the picture would be done no sooner."
                )

    def _tell_shapes(self) -> None:
        """Networks of packed latents (video with sound) read their shapes off themselves, where ComfyUI
        writes them for the main device alone.
        """
        main = self._clones[self._main].model
        if hasattr(main, "latent_shapes"):
            for clone in self._clones.values():
                clone.model.latent_shapes = main.latent_shapes

    def _share(self, place: torch.device, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        """What one worker does: each thread has its own inference mode, its own options and its own
        guider.
        """
        with torch.inference_mode():
            clones, model = {place: self._clones[place]}, self._models[place]
            return [
                self.predict(model, state.x, state.sigmas, arguments, multigpu_clones=clones)
                for state in states
            ]

    def _fail(self, place: torch.device, error: BaseException | None) -> None:
        """Leave a device out that raised an error. Raises what is no error but the user's wish."""
        if not isinstance(error, Exception):
            assert error is not None
            raise error
        if place == self._main:
            raise error
        self._leave_out(place, f"{place} failed ({type(error).__name__}: {error})")

    def _leave_out(self, place: torch.device, why: str) -> None:
        self.width = max(1, self.width * (len(self._places) - 1) // len(self._places))
        self._places.remove(place)
        if self._plan is not None:
            self._allot()
        self.request.warn(
            f"{why}. It is left out for the rest of this image, and {self._main} evaluates its states."
        )


def _own_guider(model: Any) -> Any:
    """The sampler's model with a guider of its own, which a patch may change for the time of a call.

    What other nodes wrapped around the model cannot be copied without them, and is shared.
    """
    if not isinstance(model, comfy.samplers.KSamplerX0Inpaint):
        return model
    own = copy.copy(model)
    own.inner_model = copy.copy(model.inner_model)
    return own
