# SPDX-License-Identifier: GPL-3.0-or-later
"""The guidance of students, in the conditioning: one scale, or a row of the batch for each of several."""

from typing import Any

import node_helpers
import torch
from comfy_api.latest import io

from ..common.messages import both, warn
from ..students.errors import BadScales, BadSchedule
from ..students.guidance import parse_scales, scales_tensor
from ..students.guidance_schedule import beyond_training, parse_schedule, scheduled
from ..students.student_model import ignores_guidance
from .cfg import without_guidance
from .notice import show_at_node
from .students import CATEGORY


class StudentGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffStudentGuidance",
            display_name="Student Guidance",
            category=CATEGORY,
            description="Sets the guidance scale of a guided student, on the CFG scale: 1 is no guidance.",
            search_aliases=["guidance distilled", "cfg", "flux guidance", "guidance scale", "引导强度"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The positive prompt."),
                io.Float.Input(
                    "guidance",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="As the CFG of an ordinary model. Outside the range the student was trained for, "
                    "a warning is logged.",
                ),
                io.Float.Input(
                    "second_guidance",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="For students with two guidance signals; others ignore it.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that is sampled: where it takes no guidance as an input, the "
                    "node says so.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The prompt, with its guidance.")],
        )

    @classmethod
    def execute(
        cls, conditioning: list, guidance: float, second_guidance: float | None = None, model: Any = None
    ) -> io.NodeOutput:
        for given in (guidance, second_guidance):
            scales_tensor(given, guidance)
        if model is not None and ignores_guidance(model):
            both(warn, show_at_node)(without_guidance(guidance))
        values = {
            "guidance": guidance,
            **({} if second_guidance is None else {"guidance_2": second_guidance}),
        }
        return io.NodeOutput(node_helpers.conditioning_set_values(conditioning, values))


class GuidanceSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffGuidanceSchedule",
            display_name="Guidance Schedule",
            category=CATEGORY,
            description="Guidance that changes along the way: by noise level, in the place of the "
            "conditioning's. For guided students, and for models such as Flux that take their guidance as an "
            "input.",
            search_aliases=[
                "guidance interval",
                "limited interval guidance",
                "dynamic cfg",
                "cfg scheduler",
                "flux guidance",
                "引导强度",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A student, or another model with a guidance input."),
                io.String.Input(
                    "schedule",
                    default="0: 1, 0.2: 4, 0.8: 4, 1: 2",
                    tooltip="Points share: guidance, separated by commas, with straight lines between them. "
                    "The share of the sampling is that of ComfyUI's start and end percents: 0 is all noise, "
                    "1 the picture.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model with its guidance by noise level. Sample it at CFG 1, with any "
                    "sampler, also with drafts."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, schedule: str | None = None) -> bool | str:
        try:
            if schedule is not None:
                parse_schedule(schedule)
        except BadSchedule as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: Any, schedule: str) -> io.NodeOutput:
        points, say = parse_schedule(schedule), both(warn, show_at_node)
        if ignores_guidance(model):
            say(
                "This model takes no guidance as an input, so that a schedule has nothing to change: it "
                "comes out as it went in. Expected a student, or a model such as Flux dev."
            )
            return io.NodeOutput(model)
        if beyond := beyond_training(model, points):
            say(beyond)
        return io.NodeOutput(scheduled(model, points))


class GuidanceSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffGuidanceSweep",
            display_name="Guidance Sweep",
            category=CATEGORY,
            description="One batch, many guidance scales, the same noise: compare them in a single run of a "
            "guided student.",
            search_aliases=["xy plot", "cfg", "compare guidance", "guidance distilled", "batch"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The positive prompt."),
                io.Latent.Input(
                    "latent",
                    tooltip="Each of its images is repeated once a scale, with its mask and its noise.",
                ),
                io.String.Input(
                    "scales",
                    default="1, 2, 4, 8",
                    tooltip="Guidance scales from 0 to 100, separated by commas.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The prompt with a scale for each row of the batch."),
                io.Latent.Output(tooltip="The batch: one row a scale."),
                io.String.Output(
                    display_name="names",
                    is_output_list=True,
                    tooltip="A name for each row that says its scale: with Rebatch Images, the "
                    "filename_prefix of Save Image.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, scales: str | None = "1") -> bool | str:
        try:
            parse_scales("1" if scales is None else scales)
        except BadScales as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, conditioning: list, latent: dict, scales: str) -> io.NodeOutput:
        values = parse_scales(scales)
        rows = latent["samples"].shape[0]
        return io.NodeOutput(
            node_helpers.conditioning_set_values(conditioning, {"guidance": values}),
            repeat_rows(latent, len(values)),
            [f"guidance_{g:g}" for g in values] * rows,
        )


def repeat_rows(latent: dict, n: int) -> dict:
    """Every row n times in a row, each copy with the noise of its original (``batch_index``)."""
    samples: torch.Tensor = latent["samples"]
    index = latent.get("batch_index", range(samples.shape[0]))
    repeated = {
        **latent,
        "samples": samples.repeat_interleave(n, dim=0),
        "batch_index": [i for i in index for _ in range(n)],
    }
    mask = latent.get("noise_mask")
    if mask is not None and mask.shape[0] == samples.shape[0]:
        repeated["noise_mask"] = mask.repeat_interleave(n, dim=0)
    return repeated
