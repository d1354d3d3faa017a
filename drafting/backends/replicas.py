# SPDX-License-Identifier: GPL-3.0-or-later
"""A state a device: core's replicas of the model, in core's threads."""

from __future__ import annotations

import copy
import queue
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..errors import MainDeviceOnly, Undraftable
from ..speculation import State
from .base import Backend, Request
from .compare import compute_dtype, disagreement, rtol
from .graph import CLONES, THREAD_POOL, holder_of_network

POLL_S = 0.05
"""Seconds between two looks whether the user interrupts, while a device is waited for."""
Answer = tuple[list[Tensor] | None, BaseException | None]


class Replicas(Backend):
    """One prediction of the whole guider per device; the first state on the model's own.

    Core's per-device path is used with a single device named: it moves conditioning, takes the device's
    ControlNets and brings the prediction back. Before the first draft every device predicts the last state
    again, beside the main device. One that fails, or predicts otherwise, is left out from then on.
    """

    def __init__(self, request: Request, width: int) -> None:
        super().__init__(request, width)
        self._clones, self._pool = request.options[CLONES], request.options[THREAD_POOL]
        self._main, *self._others = self._clones
        self._models = {place: _own_guider(request.model) for place in self._others}

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
        return cls(request, request.states_a_round or len(request.options[CLONES]))

    @property
    def places(self) -> int:  # type: ignore[override]
        return 1 + len(self._others)

    def __str__(self) -> str:
        return ", ".join(str(place) for place in (self._main, *self._others))

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        places = [self._main, *self._others]
        shares = {place: list(range(i, len(states), len(places))) for i, place in enumerate(places)}
        busy = {
            place: self._start(place, [states[i] for i in shares[place]], arguments)
            for place in self._others
            if shares[place]
        }
        evaluated_on = [str(places[i % len(places)]) for i in range(len(states))]
        predictions: dict[int, Tensor] = {}
        try:
            for i in shares[self._main]:
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
                evaluated_on[i] = str(self._main)
        self.evaluated_on = evaluated_on
        return [predictions[i] for i in range(len(states))]

    def check(self, arguments: dict[str, Any]) -> None:
        if self.checked or self._last is None:
            return
        state, prediction = self._last
        busy = {place: self._start(place, [state], arguments) for place in self._others}
        limit = rtol(compute_dtype(self.request.guider))
        for place, answer in busy.items():
            result, error = self._wait(place, answer)
            if result is None:
                self._fail(place, error)
            elif not (off := disagreement(result[0], prediction)) <= limit:
                self._leave_out(
                    place,
                    f"{place} predicts otherwise than {self._main} does (off by {off:.1e} of a prediction): "
                    "a patch, the model or the driver differs there",
                )
        if len(self._others) == len(busy):  # who was left out is to be found out again
            self.passed()

    def _start(
        self, place: torch.device, states: list[State], arguments: dict[str, Any]
    ) -> queue.SimpleQueue[Answer]:
        """Have a device predict; its answer comes by the queue, whatever happens there."""
        answer: queue.SimpleQueue[Answer] = queue.SimpleQueue()

        def work() -> None:
            # Core's thread ends with what is no Exception, and then never answers.
            try:
                answer.put((self._share(place, states, arguments), None))
            except BaseException as error:
                answer.put((None, error))

        self._pool.submit(place, work)
        return answer

    def _wait(self, place: torch.device, answer: queue.SimpleQueue[Answer]) -> Answer:
        """Raises InterruptProcessingException where the user interrupts, though the device may never
        answer.
        """
        while True:
            try:
                answered = answer.get(timeout=POLL_S)
            except queue.Empty:
                comfy.model_management.throw_exception_if_processing_interrupted()
                continue
            self._pool.get_result(place)  # nothing; the thread is free again
            return answered

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
        self._leave_out(place, f"{place} failed ({type(error).__name__}: {error})")

    def _leave_out(self, place: torch.device, why: str) -> None:
        self.width = max(1, self.width * len(self._others) // (1 + len(self._others)))
        self._others.remove(place)
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
