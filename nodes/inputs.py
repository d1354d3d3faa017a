# SPDX-License-Identifier: GPL-3.0-or-later
"""The inputs of core's KSampler, with its names and ranges, for the samplers of this pack."""

import comfy.samplers
from comfy_api.latest import io

LEAST_DENOISE = 0.001
"""A sampler for a share of the noise is the end of one of steps / denoise steps, which no memory holds for a
share near 0.
"""


def model(optional: bool = False) -> io.Model.Input:
    return io.Model.Input("model", optional=optional, tooltip="The model that removes the noise.")


def seed(tooltip: str = "Of the noise.") -> io.Int.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip
    )


def steps(default: int, least: int = 1, tooltip: str = "Steps of the sampler.") -> io.Int.Input:
    return io.Int.Input("steps", default=default, min=least, max=10000, tooltip=tooltip)


def cfg() -> io.Float.Input:
    return io.Float.Input(
        "cfg",
        default=4.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="How closely the prompt is followed. 1 for guided students: their guidance is an input of "
        "their own.",
    )


def sampler_name() -> io.Combo.Input:
    return io.Combo.Input(
        "sampler_name",
        options=comfy.samplers.SAMPLER_NAMES,
        default="dpmpp_2m",
        tooltip="Any sampler of ComfyUI.",
    )


def scheduler() -> io.Combo.Input:
    return io.Combo.Input(
        "scheduler",
        options=comfy.samplers.SCHEDULER_NAMES,
        tooltip="How the steps are spread over the noise levels.",
    )


def positive(optional: bool = False) -> io.Conditioning.Input:
    return io.Conditioning.Input("positive", optional=optional, tooltip="What the picture should show.")


def negative(optional: bool = False) -> io.Conditioning.Input:
    return io.Conditioning.Input(
        "negative", optional=optional, tooltip="What it should not show. Not used at CFG 1."
    )


def latent_image() -> io.Latent.Input:
    return io.Latent.Input(
        "latent_image",
        tooltip="The latent to sample from: an empty one, or a picture, with its mask where it has one.",
    )


def denoise() -> io.Float.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="The share of the noise that is added and removed. Below 1, the picture given is kept in "
        "part.",
    )


def check_denoise(denoise: float | None) -> bool | str:
    """As :func:`check_range`."""
    if denoise is None or denoise == 0 or LEAST_DENOISE <= denoise <= 1:
        return True
    return f"denoise: got {denoise}; expected 0, or a share of the noise from {LEAST_DENOISE} to 1."


def check_range(name: str, value: float | None, low: float, high: float) -> bool | str:
    """For validate_inputs, which takes the place of core's own check: True, or what is wrong with the value.

    None is a value that another node has yet to give.
    """
    if value is None or low <= value <= high:
        return True
    return f"{name}: got {value:g}; expected a number from {low:g} to {high:g}."
