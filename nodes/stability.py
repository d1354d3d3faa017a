# SPDX-License-Identifier: GPL-3.0-or-later
"""Stability grids: measure the model in the graph, make sigmas for it, sample with them."""

from dataclasses import replace
from typing import Any

import comfy.samplers
from comfy_api.latest import io, ui

from ..common.messages import both, inform, warn
from ..stability import scheduler
from ..stability.enough import fewest_steps
from ..stability.guiders import subject_of
from ..stability.measured import Measured
from ..stability.profile import QUICK, THOROUGH, Effort
from ..stability.solvers import SOLVERS
from ..stability.subject import CHECK_CALLS
from . import inputs
from .measuring import measure, picture_of, sample, with_progress
from .notice import show_at_node
from .stability_inputs import (
    DEFAULT_SOLVER,
    PLOTTED_STEPS,
    SIGMAS,
    STABILITY_PROFILE,
    TOLERANCE,
    again_input,
    effort_input,
    guider_input,
    probe_seed,
    sampler_input,
    solver_input,
    steps_input,
    tolerance_input,
)

CATEGORY = "DizzyDiff/stability"


class StabilityProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffStabilityProfile",
            display_name="Measure Stability",
            category=CATEGORY,
            description="Measures how errors arise and grow in this very model, with this prompt, CFG and "
            "size, for Stability Grid. Done once: the profile is kept in ComfyUI's user folder.",
            search_aliases=["calibrate", *SIGMAS],
            inputs=[
                inputs.model(optional=True),
                inputs.positive(optional=True),
                inputs.negative(optional=True),
                inputs.cfg(),
                io.Latent.Input(
                    "latent",
                    tooltip="Its size is what counts; its rows say how many probes a device evaluates at "
                    "once.",
                ),
                effort_input(
                    "levels",
                    THOROUGH.levels,
                    8,
                    f"Noise levels of each probe. {QUICK.levels} levels and {QUICK.probes} probes are the "
                    f"quick setting: {QUICK.calls + CHECK_CALLS} model calls.",
                ),
                effort_input(
                    "probes",
                    THOROUGH.probes,
                    1,
                    f"Trajectories. {THOROUGH.levels} levels and {THOROUGH.probes} probes cost "
                    f"{THOROUGH.calls + CHECK_CALLS} model calls.",
                ),
                probe_seed(),
                guider_input(),
                again_input(),
            ],
            outputs=[
                STABILITY_PROFILE.Output(
                    display_name="profile", tooltip="For Stability Grid, with any number of steps and solver."
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="From high noise to low: how errors arise and grow; the points of three grids.",
                ),
                io.Model.Output(
                    display_name="model",
                    tooltip="The model, for any sampler node with the scheduler dizzydiff.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any = None,
        positive: list | None = None,
        negative: list | None = None,
        cfg: float = 1.0,
        latent: dict | None = None,
        levels: int = THOROUGH.levels,
        probes: int = THOROUGH.probes,
        seed: int = 0,
        guider: Any = None,
        measure_again: bool = False,
    ) -> io.NodeOutput:
        subject = replace(subject_of(model, positive, negative, cfg, guider, latent or {}), seed=seed)
        measured = measure(subject, Effort(levels, probes, THOROUGH.directions), again=measure_again)
        picture = picture_of(measured)
        shown = ui.PreviewImage(picture, cls=cls).as_dict()
        measured_model = scheduler.with_measured(subject.model, measured)
        return io.NodeOutput(measured, picture, measured_model, ui={**shown, "text": [measured.origin]})


class StabilityGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffStabilityGrid",
            display_name="Stability Grid",
            category=CATEGORY,
            description="Sigmas for a number of steps and a kind of solver, from what was measured of the "
            "model. For SamplerCustom.",
            search_aliases=SIGMAS,
            inputs=[
                STABILITY_PROFILE.Input("profile", tooltip="From Measure Stability."),
                steps_input(),
                inputs.denoise(),
                solver_input(),
                io.Float.Input(
                    "base_blend",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="The share of core's simple sigmas that is mixed in. 0: all as measured.",
                ),
                sampler_input(),
                tolerance_input(),
            ],
            outputs=[io.Sigmas.Output(tooltip="One more than the steps; the last is 0.")],
        )

    @classmethod
    def validate_inputs(cls, denoise: float | None = 1.0, base_blend: float | None = 0.0) -> bool | str:
        blend = inputs.check_range("base_blend", base_blend, 0.0, 1.0)
        return inputs.check_denoise(denoise) if blend is True else blend

    @classmethod
    def execute(
        cls,
        profile: Measured,
        steps: int,
        denoise: float,
        solver: str,
        base_blend: float = 0.0,
        sampler: Any = None,
        tolerance: float = TOLERANCE,
    ) -> io.NodeOutput:
        say = both(warn, show_at_node)
        if steps == 0:
            steps = fewest_steps(
                profile,
                SOLVERS[solver],
                sampler,
                tolerance=tolerance,
                say=both(inform, show_at_node),
                progress=with_progress(),
                denoise=denoise,
                share=base_blend,
            )
        if sampler is not None:
            return io.NodeOutput(profile.sigmas_of(sampler, steps, denoise, base_blend, say=say))
        return io.NodeOutput(profile.sigmas(steps, denoise, SOLVERS[solver], base_blend, say=say))


class StabilitySampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffStabilitySampler",
            display_name="Stability-Grid Sampler",
            category=CATEGORY,
            description="KSampler with sigmas measured on the model itself. The first use measures "
            f"({THOROUGH.calls + CHECK_CALLS} model calls) and keeps the result; after that it costs "
            "nothing.",
            search_aliases=["ksampler", "sigmas", "scheduler", "ays", "few steps"],
            inputs=[
                inputs.model(optional=True),
                inputs.seed(),
                steps_input(),
                inputs.cfg(),
                inputs.sampler_name(),
                inputs.positive(optional=True),
                inputs.negative(optional=True),
                inputs.latent_image(),
                inputs.denoise(),
                tolerance_input(),
                guider_input(),
                again_input(),
            ],
            outputs=[io.Latent.Output(tooltip="The sampled latent.")],
        )

    @classmethod
    def validate_inputs(cls, denoise: float | None = 1.0) -> bool | str:
        return inputs.check_denoise(denoise)

    @classmethod
    def execute(
        cls,
        model: Any = None,
        seed: int = 0,
        steps: int = PLOTTED_STEPS,
        cfg: float = 1.0,
        sampler_name: str = "dpmpp_2m",
        positive: list | None = None,
        negative: list | None = None,
        latent_image: dict | None = None,
        denoise: float = 1.0,
        tolerance: float = TOLERANCE,
        guider: Any = None,
        measure_again: bool = False,
    ) -> io.NodeOutput:
        say = both(warn, show_at_node)
        subject = subject_of(model, positive, negative, cfg, guider, latent_image or {})
        measured = measure(subject, THOROUGH, again=measure_again)
        sampler = comfy.samplers.sampler_object(sampler_name)
        if steps == 0:
            steps = fewest_steps(
                measured,
                DEFAULT_SOLVER,
                sampler,
                tolerance=tolerance,
                say=both(inform, show_at_node),
                progress=with_progress(),
                denoise=denoise,
            )
        sigmas = measured.sigmas_of(sampler, steps, denoise, say=say)
        sampled = sample(subject, seed, sampler, sigmas, say)
        return io.NodeOutput(sampled, ui={"text": [measured.origin]})


def register_scheduler() -> None:
    """``dizzydiff`` among the schedulers of every sampler node."""
    scheduler.register(both(warn, show_at_node))
