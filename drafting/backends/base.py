# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backend is: predictions of the guider in the graph, at several states."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ..devices import DEVICES
from ..speculation import State

POST_CFG = "sampler_post_cfg_function"
CLONES, THREAD_POOL = "multigpu_clones", "multigpu_thread_pool"
"""Core's keys in ``model_options`` for replicas, by device, and for its threads."""


@dataclass(frozen=True)
class Request:
    """What is to be evaluated: the model of a sampler (core's KSamplerX0Inpaint), and the options it is
    called with.

    width: states a round, or 0: what Draft Devices says, or else what the backend thinks best.
    """

    model: Any
    options: dict[str, Any]
    width: int = 0
    clock: Callable[[], float] = time.perf_counter

    @property
    def wish(self) -> dict[str, Any]:
        """What Draft Devices was told."""
        return self.options.get(DEVICES, {})

    @property
    def states_a_round(self) -> int:
        return self.width or self.wish.get("width", 0)

    @property
    def post_cfg_hooks(self) -> int:
        """Of the graph. A ``*_cfg_pp`` sampler adds one of its own."""
        return len(self.options.get(POST_CFG, []))


class Backend:
    """Predictions of a sampler's model (masks, then the guider) at several states, one after the other."""

    places = 1
    """Devices that evaluate at the same time."""

    def __init__(self, request: Request, width: int) -> None:
        self.model, self.width, self._graph_hooks = request.model, width, request.post_cfg_hooks

    @classmethod
    def refusal(cls, request: Request) -> str:
        """Why this backend cannot evaluate what is asked for, in a sentence without its end; "" where it
        can.
        """
        raise NotImplementedError

    @classmethod
    def make(cls, request: Request) -> Backend:
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """States the next round may hold."""
        return self.width

    def __call__(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.evaluate(states, arguments)

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        return [
            self.predict(self.model, x, x.new_full([x.shape[0]], sigma), arguments) for x, sigma in states
        ]

    def predict(
        self, model: Any, x: Tensor, sigma: Tensor, arguments: dict[str, Any], **options: Any
    ) -> Tensor:
        """The guider's prediction [P, ...]; ``options`` replace model options.

        A ``*_cfg_pp`` sampler reads uncond through a post-cfg hook of its own. Where it added one (P = 2),
        the hook is left out here, uncond is kept beside the prediction, and :meth:`deliver` calls the hook
        when the sampler gets its prediction.
        """
        model_options = comfy.model_patcher.create_model_options_clone(arguments["model_options"])
        for key in (CLONES, THREAD_POOL):
            model_options.pop(key, None)
        model_options.update(options)
        if len(model_options.get(POST_CFG, [])) == self._graph_hooks:
            return model(x, sigma, **{**arguments, "model_options": model_options})[None]
        uncond: list[Tensor] = []

        def keep(report: dict[str, Any]) -> Tensor:
            uncond.append(report["uncond_denoised"])
            return report["denoised"]

        model_options[POST_CFG] = [*model_options[POST_CFG][: self._graph_hooks], keep]
        denoised = model(x, sigma, **{**arguments, "model_options": model_options})
        return torch.stack([denoised, uncond[-1]])

    def deliver(self, prediction: Tensor, x: Tensor, sigma: float, arguments: dict[str, Any]) -> Tensor:
        """What the sampler gets: the denoised prediction, after its own post-cfg hooks have seen uncond."""
        denoised = prediction[0]
        for hook in arguments.get("model_options", {}).get(POST_CFG, [])[self._graph_hooks :]:
            denoised = hook({"denoised": denoised, "uncond_denoised": prediction[-1], "input": x})
        return denoised
