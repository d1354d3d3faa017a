# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's samplers as solvers, found by dry runs of their own functions."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..common.alpha import alpha_of
from ..common.dry_run import Callback, NoiseSampler, Predict, Untraceable
from ..common.sampler_trace import Trace, trace
from .solvers import Solver
from .traced import traced_solver

DIMENSIONS = 3
"""Of the states of a dry run; samplers do not look at them."""


class StandIn:
    """A model as sampler functions know it, whose predictions come from ``predict``."""

    def __init__(self, predict: Predict, sampling: Any) -> None:
        self._predict = predict
        patcher = SimpleNamespace(get_model_object=lambda name: sampling, model=self)
        inner = SimpleNamespace(model_sampling=sampling)
        self.inner_model = SimpleNamespace(model_patcher=patcher, inner_model=inner)

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], **_: Any) -> Tensor:
        """Hooks, by which the ``*_cfg_pp`` samplers see the unconditional prediction, see this one."""
        D = self._predict(x, sigma)[0]
        for hook in model_options.get("sampler_post_cfg_function", ()):
            D = hook(
                {"denoised": D, "uncond_denoised": D, "cond_denoised": D, "model_options": model_options}
            )
        return D


def solver_of(sampler: Any, sampling: Any) -> Solver:
    """The solver that a SAMPLER is on a model's noise levels. Raises Untraceable."""
    sampler = getattr(sampler, "inner", sampler)  # a drafted sampler takes the steps of the one within
    if not isinstance(sampler, comfy.samplers.KSAMPLER):
        raise Untraceable(f"{type(sampler).__name__} is not made of a sampler function")
    tracer = functools.partial(_traced, sampler, sampling)
    name = getattr(sampler.sampler_function, "__name__", "sampler").removeprefix("sample_")
    levels = comfy.samplers.simple_scheduler(sampling, 6).cpu().double()
    return traced_solver(name, tracer, alpha_of(sampling), levels)


def _traced(sampler: comfy.samplers.KSAMPLER, sampling: Any, sigmas: Tensor) -> Trace:
    takes_noise = "noise_sampler" in inspect.signature(sampler.sampler_function).parameters

    def run(model: Any, x: Tensor, sigmas: Tensor, callback: Callback | None, noise: NoiseSampler) -> Tensor:
        options = {**sampler.extra_options, **({"noise_sampler": noise} if takes_noise else {})}
        arguments: dict[str, Any] = {"model_options": {}, "seed": 0}
        return sampler.sampler_function(
            model, x, sigmas, extra_args=arguments, callback=callback, disable=True, **options
        )

    def traced(sigmas: Tensor) -> Trace:
        return trace(run, lambda predict: StandIn(predict, sampling), sigmas, DIMENSIONS)

    with torch.inference_mode(False):
        try:
            return traced(sigmas.clone())
        except Untraceable:  # uni_pc solves small systems in single precision
            return traced(sigmas.float())
