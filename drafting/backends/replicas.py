# SPDX-License-Identifier: GPL-3.0-or-later
"""A state a device: core's replicas of the model, in core's threads."""

from __future__ import annotations

import copy
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..errors import MainDeviceOnly, Undraftable
from ..speculation import State
from .allotted import Allotted, Came
from .base import Request
from .graph import CLONES, THREAD_POOL, holder_of_network
from .workers import Workers


class Replicas(Allotted[torch.device]):
    """Core's per-device path is used with a single device named: it moves conditioning, takes the device's
    ControlNets and brings the prediction back. Devices that agreed once are not compared again.
    """

    def __init__(self, request: Request, width: int) -> None:
        self._clones, self._workers = request.options[CLONES], Workers(request.options[THREAD_POOL])
        super().__init__(request, width, list(self._clones))
        self._models = {place: _own_guider(request.model) for place in self._places}
        self._tell_shapes()

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

    def close(self, result: Tensor | None) -> None:
        while self._flights:
            place, flight = self._flights.popitem()
            self._wait(place, flight.answer)

    def _start(self, place: torch.device, states: list[State], arguments: dict[str, Any]) -> Any:
        return self._workers.start(place, self._share, place, states, arguments)

    def _wait(self, place: torch.device, answer: Any) -> Came:
        return self._workers.wait(place, answer)

    def _again(self, state: State, arguments: dict[str, Any]) -> dict[torch.device, Any]:
        return {} if self.checked else super()._again(state, arguments)

    def _time(
        self, state: State, arguments: dict[str, Any]
    ) -> dict[torch.device, tuple[float | None, BaseException | None]]:
        busy = {
            place: self._workers.start(place, self._seconds, place, state, arguments)
            for place in self._places
        }
        return {place: self._workers.wait(place, answer) for place, answer in busy.items()}

    def _seconds(self, place: torch.device, state: State, arguments: dict[str, Any]) -> float:
        """Of a model call, until its prediction is there."""
        started = self.request.clock()
        (prediction,) = self._share(place, [state], arguments)
        prediction.flatten()[0].item()
        return self.request.clock() - started

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


def _own_guider(model: Any) -> Any:
    """The sampler's model with a guider of its own, which a patch may change for the time of a call.

    What other nodes wrapped around the model cannot be copied without them, and is shared.
    """
    if not isinstance(model, comfy.samplers.KSamplerX0Inpaint):
        return model
    own = copy.copy(model)
    own.inner_model = copy.copy(model.inner_model)
    return own
