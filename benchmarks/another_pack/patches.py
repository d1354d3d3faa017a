# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches by what they do that a batch of several noise levels, another order of calls or another thread
would break: they read one noise level, mix rows, or remember. Each is MODEL -> MODEL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Patch = Callable[[Any], Any]


def reads_first_sigma(low: float, high: float) -> Patch:
    """Attention stronger while the first row's noise level lies between two shares of the run."""

    def patch(model: Any) -> Any:
        model = model.clone()
        sampling = model.get_model_object("model_sampling")
        start, end = (float(sampling.percent_to_sigma(share)) for share in (low, high))

        def wrapper(apply_model: Any, call: dict[str, Any]) -> Tensor:
            sigma = call["c"]["transformer_options"]["sigmas"][0].item()
            output = apply_model(call["input"], call["timestep"], **call["c"])
            return 1.1 * output if end <= sigma <= start else output

        model.set_model_unet_function_wrapper(wrapper)
        return model

    return patch


def asks_one_sigma(model: Any) -> Any:
    """A post-CFG function that takes the noise level as one number, and fails where there are several."""
    model = model.clone()

    def scaled(call: dict[str, Any]) -> Tensor:
        sigma = call["sigma"].unique().item()
        return call["denoised"] * (1 - 0.1 / (1 + sigma))

    model.set_model_sampler_post_cfg_function(scaled)
    return model


def looks_up_step(model: Any) -> Any:
    """A block patch that finds its step among the sampled noise levels, as step switches do."""
    model = model.clone()

    def wrapper(apply_model: Any, call: dict[str, Any]) -> Tensor:
        options = call["c"]["transformer_options"]
        step = int((options["sample_sigmas"] - options["sigmas"][0]).abs().argmin())
        return apply_model(call["input"], call["timestep"], **call["c"]) * (1 + 0.05 * (step % 3))

    model.set_model_unet_function_wrapper(wrapper)
    return model


def normalises_over_batch(model: Any) -> Any:
    model = model.clone()

    def normalised(call: dict[str, Any]) -> Tensor:
        return (
            call["denoised"] * (call["cond_denoised"].std() / call["denoised"].std().clamp_min(1e-6)) ** 0.5
        )

    model.set_model_sampler_post_cfg_function(normalised)
    return model


def centres_rows(model: Any) -> Any:
    """The rows of a batch drawn towards their mean, as style alignment does."""
    model = model.clone()

    def wrapper(apply_model: Any, call: dict[str, Any]) -> Tensor:
        output = apply_model(call["input"], call["timestep"], **call["c"])
        return 0.9 * output + 0.1 * output.mean(0, keepdim=True)

    model.set_model_unet_function_wrapper(wrapper)
    return model


def every_second_call(model: Any) -> Any:
    """A cache that answers every second call from the one before, whatever is asked."""
    memory: dict[str, Any] = {"calls": 0}
    model = model.clone()

    def wrapper(apply_model: Any, call: dict[str, Any]) -> Tensor:
        memory["calls"] += 1
        last = memory.get("output")
        if memory["calls"] % 2 == 0 and last is not None and last.shape == call["input"].shape:
            return last
        memory["output"] = apply_model(call["input"], call["timestep"], **call["c"])
        return memory["output"]

    model.set_model_unet_function_wrapper(wrapper)
    return model


def accumulates_change(model: Any) -> Any:
    """A cache that is reused while the input has changed little since, as TeaCache and its like are."""
    memory: dict[str, Any] = {}
    model = model.clone()

    def wrapper(apply_model: Any, call: dict[str, Any]) -> Tensor:
        x = call["input"]
        if "x" in memory and memory["x"].shape == x.shape:
            change = float((x - memory["x"]).abs().mean() / memory["x"].abs().mean())
            memory["left"] -= change
            memory["x"] = x
            if memory["left"] > 0:
                return x + memory["residual"]
        output = apply_model(x, call["timestep"], **call["c"])
        memory.update(x=x, residual=output - x, left=0.4)
        return output

    model.set_model_unet_function_wrapper(wrapper)
    return model


def momentum(model: Any) -> Any:
    """Guidance whose direction is a running mean over the calls before."""
    memory: dict[str, Any] = {}
    model = model.clone()

    def guided(call: dict[str, Any]) -> Tensor:
        direction = call["cond"] - call["uncond"]
        last = memory.get("direction")
        if last is not None and last.shape == direction.shape:
            direction = 0.6 * direction + 0.4 * last
        memory["direction"] = direction
        return call["uncond"] + call["cond_scale"] * direction

    model.set_model_sampler_cfg_function(guided)
    return model


def counts_calls(model: Any) -> Any:
    """Another strength at each call, by a counter."""
    model, memory = model.clone(), {"calls": 0}

    def wrapper(apply_model: Any, call: dict[str, Any]) -> Tensor:
        memory["calls"] += 1
        return apply_model(call["input"], call["timestep"], **call["c"]) * (1 + 0.05 * (memory["calls"] % 2))

    model.set_model_unet_function_wrapper(wrapper)
    return model


def draws_noise(model: Any) -> Any:
    """Noise on every prediction, from torch's own generator: another at each call."""
    model = model.clone()

    def wrapper(apply_model: Any, call: dict[str, Any]) -> Tensor:
        output = apply_model(call["input"], call["timestep"], **call["c"])
        return output + 0.1 * torch.randn(output.shape)

    model.set_model_unet_function_wrapper(wrapper)
    return model


def sets_guider(model: Any) -> Any:
    """A wrapper of predict_noise that sets the guider's CFG for a call and puts it back."""
    import comfy.patcher_extension

    model = model.clone()
    half = float(model.get_model_object("model_sampling").percent_to_sigma(0.5))

    def wrapper(executor: Any, x: Tensor, sigma: Tensor, *rest: Any) -> Tensor:
        guider = executor.class_obj
        before, guider.cfg = guider.cfg, 1.0 if float(sigma[0]) > half else guider.cfg
        try:
            return executor(x, sigma, *rest)
        finally:
            guider.cfg = before

    model.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, wrapper)
    return model
