# SPDX-License-Identifier: GPL-3.0-or-later
"""Export Student LoRA: a student for a ComfyUI without this pack."""

from typing import Any

from comfy_api.latest import io

from ..common.messages import both, inform
from ..students.distill.plain_lora import export, other_patches, student_in
from ..students.errors import StudentError
from ..students.guidance import parse_scales
from ..students.recipe import description
from .notice import show_at_node
from .places import place_of
from .students import CATEGORY

FOLDER = "loras"


class ExportLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffExportLoRA",
            display_name="Export Student LoRA",
            category=CATEGORY,
            is_output_node=True,
            description="Saves a student of Distill Guidance at fixed guidance scales as plain LoRAs of its "
            "teacher, one a scale, which ComfyUI's own Load LoRA loads with or without this pack.",
            search_aliases=["save lora", "share student", "extract lora", "fixed guidance", "蒸馏"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The student: from Distill Guidance, or from Load Guided Student with its "
                    "teacher connected.",
                ),
                io.String.Input(
                    "scales",
                    default="4",
                    tooltip="Guidance scales from 0 to 100, separated by commas: a file each, of that scale "
                    "alone.",
                ),
                io.String.Input(
                    "name",
                    default="my_student",
                    tooltip="The file of scale 4 becomes models/loras/NAME_g4.safetensors. One that this "
                    "node wrote before is replaced.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="names", is_output_list=True, tooltip="Of the files, one a scale."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, scales: str | None = None, name: str | None = None) -> bool | str:
        try:
            if scales is not None:
                parse_scales(scales)
            if name is not None:
                place_of(FOLDER, name)
        except StudentError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: Any, scales: str, name: str) -> io.NodeOutput:
        adapter = student_in(model)
        written = export(model, parse_scales(scales), place_of(FOLDER, name))
        say, names = both(inform, show_at_node), [path.name for path in written]
        say(f"Saved {', '.join(names)}. Load it on the teacher with strength 1 and CFG 1.")
        say(description(adapter))
        if others := other_patches(model):
            say(
                f"The model has {others} patches of other nodes, such as LoRAs, which the file does not "
                "hold: put them on as well."
            )
        return io.NodeOutput(names)
