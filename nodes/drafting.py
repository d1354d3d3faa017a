# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine: one image on several devices, in a fraction of the rounds."""

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io, ui

from ..common.messages import both, inform, warn
from ..common.pictures import image_of, picture_of_text
from ..drafting import timeline
from ..drafting.devices import WORDS, choices, parse_devices, spread
from ..drafting.errors import BadDevices
from ..drafting.policies import Mode
from ..drafting.predictors import DRAFTS, DraftsName
from ..drafting.report import Report
from ..drafting.sampler import DraftRefine, Settings
from . import drafting_inputs, inputs
from .cfg import warn_of_guidance, warning_of_guidance
from .drafting_inputs import check_old_name, of_either_name
from .notice import show_at_node

CATEGORY = "DizzyDiff/drafting"


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
                io.Combo.Input(
                    "devices",
                    options=choices(),
                    default="auto",
                    tooltip="auto: all GPUs; with a single one, up to every second model call is skipped. "
                    "batch: several states at a time on one device, where nothing in the graph stands "
                    "against it. Or the devices of this machine to use.",
                ),
                drafting_inputs.predictions_per_round(
                    "Evaluated at the same time, at most. 0: what makes the picture end soonest, one each on "
                    "equal devices; or 4 in a batch."
                ),
            ],
            accept_all_inputs=True,
            outputs=[
                io.Model.Output(
                    tooltip="The model, for the draft-refine samplers. Others sample it as before."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, devices: str | None = "auto", width: int | None = 0) -> bool | str:
        # Any list of devices is right, not only those offered.
        try:
            if devices is not None and devices.strip().lower() not in WORDS:
                parse_devices(devices)
        except BadDevices as error:
            return str(error)
        return check_old_name(width)

    @classmethod
    def execute(
        cls, model: Any, devices: str, predictions_per_round: int = 0, **others: Any
    ) -> io.NodeOutput:
        width = of_either_name(predictions_per_round, others)
        spread_model = spread(model, devices, width, both(inform, show_at_node))
        return io.NodeOutput(warning_of_guidance(spread_model))


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
            search_aliases=drafting_inputs.FASTER,
            inputs=[
                io.Sampler.Input("sampler", tooltip="From KSamplerSelect or any node that gives a SAMPLER."),
                drafting_inputs.mode(),
                drafting_inputs.of_this_sampler(),
                drafting_inputs.tolerance(),
                io.Combo.Input(
                    "drafts",
                    options=list(DRAFTS),
                    default=next(iter(DRAFTS)),
                    optional=True,
                    advanced=True,
                    tooltip="extrapolated: follows the trend of the last predictions. frozen: holds the "
                    "last one.",
                ),
            ],
            accept_all_inputs=True,
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(cls, width: int | None = 0) -> bool | str:
        return check_old_name(width)

    @classmethod
    def execute(
        cls,
        sampler: Any,
        mode: Mode,
        predictions_per_round: int = 0,
        tolerance: float = drafting_inputs.TOLERANCE,
        drafts: DraftsName = "extrapolated",
        **others: Any,
    ) -> io.NodeOutput:
        width = of_either_name(predictions_per_round, others)
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
            search_aliases=["ksampler", "timeline", *drafting_inputs.FASTER],
            inputs=[
                inputs.model(),
                inputs.seed(),
                inputs.steps(28),
                inputs.cfg(),
                inputs.sampler_name(),
                inputs.scheduler(),
                inputs.positive(),
                inputs.negative(),
                inputs.latent_image(),
                inputs.denoise(),
                drafting_inputs.mode(),
                drafting_inputs.of_this_sampler(),
                drafting_inputs.tolerance(),
            ],
            accept_all_inputs=True,
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
    def validate_inputs(cls, denoise: float | None = 1.0, width: int | None = 0) -> bool | str:
        old = check_old_name(width)
        return inputs.check_denoise(denoise) if old is True else old

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
        predictions_per_round: int = 0,
        tolerance: float = drafting_inputs.TOLERANCE,
        **others: Any,
    ) -> io.NodeOutput:
        from comfy_extras.nodes_custom_sampler import SamplerCustom

        reports: list[Report] = []
        messages: list[str] = []

        def tell(sentence: str) -> None:
            messages.append(sentence)
            show_at_node(sentence)

        model = warn_of_guidance(model, cfg, positive, both(warn, tell))
        sampler = DraftRefine(
            comfy.samplers.sampler_object(sampler_name),
            Settings(mode, of_either_name(predictions_per_round, others), tolerance),
            on_report=reports.append,
            on_message=tell,
        )
        sigmas = comfy.samplers.KSampler(
            model, steps, model.load_device, sampler_name, scheduler, denoise
        ).sigmas
        sampled = SamplerCustom.execute(
            model, True, seed, cfg, positive, negative, sampler, sigmas, latent_image
        )
        picture = picture_of(reports, messages)
        shown = ui.PreviewImage(picture, cls=cls).as_dict()
        numbers = [report.numbers for report in reports]
        return io.NodeOutput(
            sampled.result[0],
            picture,
            " ".join(messages),
            ui={**shown, "text": messages, "draft_refine": numbers},
        )


def picture_of(reports: list[Report], messages: list[str]) -> torch.Tensor:
    """The timeline [1, H, W, 3] of a run, or why nothing was drafted."""
    picture = timeline.draw(reports[0]) if reports else picture_of_text(" ".join(messages))
    return image_of(picture)
