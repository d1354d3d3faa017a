# SPDX-License-Identifier: GPL-3.0-or-later
"""Several places that evaluate at the same time, as many states as each has time for."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..allotment import VERIFIED_USE, Allotment, Far, allot, speed_class
from ..speculation import Arrival, State
from ..verdicts import Verdict
from .base import Backend, Request
from .compare import compute_dtype, disagreement, rtol
from .graph import foreign, same_conditions

MEASURED = 3
"""Calls by which a place that seems slower or faster than the model's own is measured; others by one."""
P = TypeVar("P")
"""A place: its ``str`` is the name that users see."""
Came = tuple[list[Tensor] | None, BaseException | None]
"""What a place made, or why it did not."""


@dataclass
class Flight:
    """A far draft that a place evaluates meanwhile: of how many rounds, and how many are left."""

    call: int
    state: State
    answer: Any
    rounds: int
    left: int


class Allotted(Backend, Generic[P]):
    """Predictions of the whole guider, at every place as many as it has time for.

    Before the first draft every place predicts the last state again, beside the main one, which is the first.
    One that fails, or predicts otherwise, is left out from then on. Then each is timed, once a graph: what it
    evaluates follows from these speeds (``allotment``), which are kept.
    """

    def __init__(self, request: Request, width: int, places: Sequence[P]) -> None:
        """width: states a round; 0: one a place, or what the speeds say."""
        super().__init__(request, width or len(places))
        self._places, self._main = list(places), places[0]
        self._asked_width = width
        self._alone = foreign(request.model, request.options) is None
        self._plan: Allotment | None = None
        self._flights: dict[P, Flight] = {}
        self._arrived: dict[int, Arrival] = {}

    @abstractmethod
    def _start(self, place: P, states: list[State], arguments: dict[str, Any]) -> Any:
        """Have a place evaluate states, after what it does already: what :meth:`_wait` waits for."""

    @abstractmethod
    def _wait(self, place: P, answer: Any) -> Came:
        """Raises InterruptProcessingException where the user interrupts."""

    @abstractmethod
    def _time(self, state: State, arguments: dict[str, Any]) -> dict[P, tuple[float | None, Any]]:
        """Seconds of a model call at every place, all at the same time, each until its prediction is there;
        or what went wrong.
        """

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
            answer = self._start(place, [state], arguments)
            self._flights[place] = Flight(call, state, answer, far.rounds, far.rounds)

    def due(self) -> Mapping[int, State]:
        return {flight.call: flight.state for flight in self._flights.values() if flight.left == 1}

    def arrived(self) -> Mapping[int, Arrival]:
        return self._arrived

    def _free(self) -> list[tuple[P, Far]]:
        """Devices that may begin a far draft now."""
        plan = [(self._places[far.device], far) for far in self._plan.far] if self._plan else []
        return [(place, far) for place, far in plan if place not in self._flights]

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        near = self._plan.near if self._plan else range(len(self._places))
        on = [self._places[i] for i in itertools.islice(itertools.cycle(near), len(states))]
        shares = {place: [i for i, at in enumerate(on) if at == place] for place in dict.fromkeys(on)}
        busy = {
            place: self._start(place, [states[i] for i in share], arguments)
            for place, share in shares.items()
            if place != self._main
        }
        predictions: dict[int, Tensor] = {}
        try:
            for i in shares.get(self._main, ()):
                predictions[i] = super().evaluate([states[i]], arguments)[0]
        finally:
            answers = {place: self._wait(place, answer) for place, answer in busy.items()}
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
            result, error = self._wait(place, flight.answer)
            if result is None:
                self._fail(place, error)
            else:
                self._arrived[flight.call] = Arrival(flight.state, result[0], str(place), flight.rounds)

    def check(self, arguments: dict[str, Any]) -> None:
        known = self._verdict or Verdict()
        if self._last is None:
            return
        others, (state, prediction) = self._places[1:], self._last
        self._compare(state, prediction, arguments)
        speeds, call_s = dict(known.speeds), known.call_s
        if not {str(place) for place in self._places} <= speeds.keys():
            measured, call_s = self._measure(state, arguments)
            speeds = measured | speeds
        everyone = len(self._places) == 1 + len(others)  # who was left out is to be found out again
        self.found(Verdict(passed=everyone, speeds=speeds, call_s=call_s))
        self._allot()
        self._tell()

    def _again(self, state: State, arguments: dict[str, Any]) -> dict[P, Any]:
        """What the other places answer at the state that the main one evaluated last: see :meth:`_start`."""
        return {place: self._start(place, [state], arguments) for place in self._places[1:]}

    def _compare(self, state: State, prediction: Tensor, arguments: dict[str, Any]) -> None:
        """Leave out who predicts another ``prediction`` at the state than the main place did."""
        limit = rtol(compute_dtype(self.request.guider))
        for place, answer in self._again(state, arguments).items():
            result, error = self._wait(place, answer)
            if result is None:
                self._fail(place, error)
            elif not (off := disagreement(result[0].to(prediction.device), prediction)) <= limit:
                self._leave_out(
                    place,
                    f"{place} predicts otherwise than {self._main} does (off by {off:.1e} of a prediction): "
                    "a file, a patch, a pack or the driver differs there",
                )

    def _measure(self, state: State, arguments: dict[str, Any]) -> tuple[dict[str, float], float]:
        """Speeds in classes relative to the main place, by name, and the seconds of the fastest's call.

        What disturbs a call makes it longer, so that the shortest counts.
        """
        best: dict[P, float] = {}
        for _ in range(MEASURED):
            for place, (seconds, error) in self._time(state, arguments).items():
                if seconds is None:
                    self._fail(place, error)
                else:
                    best[place] = max(min(seconds, best.get(place, seconds)), 1e-9)
            speeds = {str(place): speed_class(best[self._main] / each) for place, each in best.items()}
            if set(speeds.values()) == {1.0}:
                break
        return speeds, min(best.values())

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

    def _fail(self, place: P, error: BaseException | None) -> None:
        """Leave a device out that raised an error. Raises what is no error but the user's wish."""
        if not isinstance(error, Exception):
            assert error is not None
            raise error
        if place == self._main:
            raise error
        self._leave_out(place, f"{place} failed ({type(error).__name__}: {error})")

    def _leave_out(self, place: P, why: str) -> None:
        self.width = max(1, self.width * (len(self._places) - 1) // len(self._places))
        self._places.remove(place)
        if self._plan is not None:
            self._allot()
        self.request.warn(
            f"{why}. It is left out for the rest of this image, and {self._main} evaluates its states."
        )
