# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine: one image on several devices, in a fraction of the rounds."""

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ..common.messages import both, inform, warn
from ..common.pictures import image_of, picture_of_text
from ..drafting import timeline
from ..drafting.devices import parse_devices, spread
from ..drafting.errors import BadDevices
from ..drafting.policies import MODES, Mode
from ..drafting.predictors import DRAFTS, DraftsName
from ..drafting.report import Report
from ..drafting.sampler import DraftRefine, Settings
from . import inputs
from .cfg import warn_of_cfg
from .notice import show_at_node

CATEGORY = "DizzyDiff/drafting"
TOLERANCE = 0.01
FASTER = [
    "faster",
    "speed up",
    "accelerate",
    "multi gpu",
    "multigpu",
    "dual gpu",
    "two gpus",
    "parallel",
    "draft",
    "speculative",
    "加速",
    "提速",
    "并行",
    "多卡",
    "多显卡",
]
"""What users search who want their sampler to be faster."""


def _mode() -> io.Combo.Input:
    return io.Combo.Input(
        "mode",
        options=list(MODES),
        default="verified",
        tooltip="verified: a draft too far from where the sampler arrives is dropped and drafted again. "
        "aggressive: drafts are always used. conservative: every second round evaluates one state.",
    )


def _width() -> io.Int.Input:
    return io.Int.Input(
        "width",
        default=0,
        min=0,
        max=64,
        tooltip="Predictions evaluated at the same time, at most. 0: what makes the picture end soonest by "
        "the devices' speeds, one each where these are equal; or 4 in a batch.",
    )


def _tolerance() -> io.Float.Input:
    return io.Float.Input(
        "tolerance",
        default=TOLERANCE,
        min=0.0,
        max=1.0,
        step=0.001,
        round=0.0001,
        tooltip="For verified: how far a draft may be off, relative to the picture. 0 samples step by step.",
    )


class DraftDevices(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffDevices",
            display_name="Draft Devices",
            category=CATEGORY,
            description="Where Draft-Refine evaluates: a copy of the model on each of several devices, or "
            "one batch on the model's own.",
            search_aliases=[
                "multi gpu",
                "multigpu",
                "dual gpu",
                "two gpus",
                "parallel",
                "devices",
                "distributed",
                "并行",
                "多卡",
                "多显卡",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model, with its LoRAs and patches: each device gets a copy of it."
                ),
                io.String.Input(
                    "devices",
                    default="auto",
                    tooltip="auto: all GPUs; with a single one, up to every second model call is skipped. "
                    "batch: several states at a time on one device, where nothing in the graph stands "
                    "against it. Or a list such as: cuda:0, cuda:1",
                ),
                _width(),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model, for the draft-refine samplers. Others sample it as before."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, devices: str | None = "auto") -> bool | str:
        try:
            if devices is not None and devices.strip().lower() not in ("auto", "batch"):
                parse_devices(devices)
        except BadDevices as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: Any, devices: str, width: int) -> io.NodeOutput:
        return io.NodeOutput(spread(model, devices, width, both(inform, show_at_node)))


class DraftRefineSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffDraftRefine",
            display_name="Draft-Refine Sampler",
            category=CATEGORY,
            description="Makes any sampler work on several predictions at once: it drafts the next states, "
            "evaluates them in parallel, and refines. Put Draft Devices before the guider; on one "
            "device without it, up to every second model call is skipped and interpolated.",
            search_aliases=FASTER,
            inputs=[
                io.Sampler.Input("sampler", tooltip="From KSamplerSelect or any node that gives a SAMPLER."),
                _mode(),
                _width(),
                _tolerance(),
                io.Combo.Input(
                    "drafts",
                    options=list(DRAFTS),
                    default=next(iter(DRAFTS)),
                    advanced=True,
                    tooltip="extrapolated: follows the trend of the last predictions. frozen: holds the "
                    "last one.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, sampler: Any, mode: Mode, width: int, tolerance: float, drafts: DraftsName = "extrapolated"
    ) -> io.NodeOutput:
        settings = Settings(mode, width, tolerance, drafts)
        return io.NodeOutput(DraftRefine(sampler, settings, on_message=show_at_node))


class DraftRefineKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffDraftRefineKSampler",
            display_name="Draft-Refine KSampler",
            category=CATEGORY,
            description="KSampler in a fraction of the rounds, on several devices or in batches on one, with "
            "Draft Devices before it; or with fewer calls on one device. The second output shows what was "
            "evaluated when, and how far each draft was off.",
            search_aliases=["ksampler", "timeline", *FASTER],
            inputs=[
                inputs.model(),
                inputs.seed(),
                inputs.steps(28),
                inputs.cfg(8.0),
                inputs.sampler_name(),
                inputs.scheduler(),
                inputs.positive(),
                inputs.negative(),
                inputs.latent_image(),
                inputs.denoise(),
                _mode(),
                _width(),
                _tolerance(),
            ],
            outputs=[
                io.Latent.Output(tooltip="What KSampler would give, within the tolerance."),
                io.Image.Output(
                    display_name="timeline",
                    tooltip="Every round: where the sampler stood, its drafts, and how far each was off. "
                    "Or why nothing was drafted.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="In words: rounds, model calls, seconds, the largest deviation; or why nothing "
                    "was drafted.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, denoise: float | None = 1.0) -> bool | str:
        return inputs.check_denoise(denoise)

    @classmethod
    def execute(
        cls,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: list,
        negative: list,
        latent_image: dict,
        denoise: float,
        mode: Mode,
        width: int,
        tolerance: float,
    ) -> io.NodeOutput:
        from comfy_extras.nodes_custom_sampler import SamplerCustom

        reports: list[Report] = []
        messages: list[str] = []

        def tell(sentence: str) -> None:
            messages.append(sentence)
            show_at_node(sentence)

        model = warn_of_cfg(model, cfg, both(warn, tell))
        sampler = DraftRefine(
            comfy.samplers.sampler_object(sampler_name),
            Settings(mode, width, tolerance),
            on_report=reports.append,
            on_message=tell,
        )
        sigmas = comfy.samplers.KSampler(
            model, steps, model.load_device, sampler_name, scheduler, denoise
        ).sigmas
        sampled = SamplerCustom.execute(
            model, True, seed, cfg, positive, negative, sampler, sigmas, latent_image
        )
        return io.NodeOutput(
            sampled.result[0],
            picture_of(reports, messages),
            " ".join(messages),
            ui={"text": messages, "draft_refine": [report.numbers for report in reports]},
        )


def picture_of(reports: list[Report], messages: list[str]) -> torch.Tensor:
    """The timeline [1, H, W, 3] of a run, or why nothing was drafted."""
    picture = timeline.draw(reports[0]) if reports else picture_of_text(" ".join(messages))
    return image_of(picture)
