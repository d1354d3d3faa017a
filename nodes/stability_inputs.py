# SPDX-License-Identifier: GPL-3.0-or-later
"""Inputs that the nodes of stability grids share."""

from comfy_api.latest import io

from ..stability.solvers import DPMPP_2M, SOLVERS
from . import inputs

DEFAULT_SOLVER = DPMPP_2M
STABILITY_PROFILE = io.Custom("STABILITY_PROFILE")
SIGMAS = ["sigmas", "scheduler", "schedule", "align your steps", "ays", "gits"]
"""What users search who want better steps."""
PLOTTED_STEPS = 12
TOLERANCE = 0.05
"""Below it the foretold numbers of steps are more than most samplers are given."""
MAX_EFFORT = 128
"""Levels, and probes: memory grows with their product."""


def effort_input(name: str, default: int, least: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=least, max=MAX_EFFORT, tooltip=tooltip)


def solver_input(optional: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        "solver",
        optional=optional,
        options=list(SOLVERS),
        default=DEFAULT_SOLVER.name,
        tooltip="Where no sampler is connected. euler: samplers of order one, such as ddim. "
        "dpmpp_2m: those that remember a step. heun: those with two calls a step.",
    )


def sampler_input() -> io.Sampler.Input:
    return io.Sampler.Input(
        "sampler",
        optional=True,
        tooltip="The sampler that the sigmas are for, of ComfyUI or another pack: a dry run "
        "tells how it steps. Solver is not used then.",
    )


def steps_input() -> io.Int.Input:
    return inputs.steps(
        PLOTTED_STEPS, 0, "Steps of the sampler. 0: the fewest that stay within the tolerance, as foretold."
    )


def tolerance_input(advanced: bool = True) -> io.Float.Input:
    return io.Float.Input(
        "tolerance",
        default=TOLERANCE,
        min=0.001,
        max=0.5,
        step=0.005,
        round=0.001,
        optional=True,
        advanced=advanced,
        tooltip="How far off pictures may be from those of ever more steps, as a share: 0.05 is 5 %. "
        "Where steps is 0.",
    )


def probe_seed() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=False,
        tooltip="Of the probes. Another seed is another measurement.",
    )


def guider_input() -> io.Guider.Input:
    return io.Guider.Input(
        "guider",
        optional=True,
        tooltip="In place of model, positive, negative and cfg, which are not used then: any GUIDER, "
        "measured as it samples.",
    )


def again_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "measure_again",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Measures now, and replaces the profile that was kept.",
    )
