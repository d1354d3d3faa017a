# SPDX-License-Identifier: GPL-3.0-or-later
"""Distil Guidance: a guided student from the MODEL in the graph."""

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..students.distill import native, plot, routing, several
from ..students.distill.run import Job, Running, distil
from ..students.distill.training import Plan, Progress
from ..students.formats import inside
from . import inputs
from .students import CATEGORY

PREVIEW_EVERY, PREVIEWED = 100, 4
FOLDER = "diffusion_models"


class DistillGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffDistillGuidance",
            display_name="Distill Guidance",
            category=CATEGORY,
            is_output_node=True,
            description="Trains a guided student of your own model: one pass a step where CFG takes two, "
            "for every guidance scale of a "
            "range, and on request in few steps. Saves what there is when interrupted, and goes on from "
            "there.",
            search_aliases=[
                "train",
                "lora",
                "guidance distillation",
                "cfg distill",
                "progressive distillation",
                "lcm",
                "turbo",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The teacher: a model that is sampled with CFG."),
                io.Clip.Input("clip", tooltip="The teacher's text encoder."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One a line, of the kind the student will be asked for. A few hundred different "
                    "ones are better "
                    "than a few.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="Its size is the one that is trained. With learn_from = pictures: the encoded "
                    "pictures, the first for the first prompt and so on.",
                ),
                io.String.Input(
                    "name",
                    default="my_student",
                    tooltip="The student becomes models/diffusion_models/NAME.safetensors. If that file is "
                    "of the same "
                    "training, it goes on from there.",
                ),
                io.Int.Input(
                    "updates",
                    default=2000,
                    min=1,
                    max=1000000,
                    tooltip="Of stage one, which teaches the guidance.",
                ),
                io.Float.Input(
                    "g_min",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Lowest guidance scale that the student learns.",
                ),
                io.Float.Input(
                    "g_max",
                    default=8.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Highest guidance scale that the student learns.",
                ),
                io.Combo.Input(
                    "student_steps",
                    options=["any", "16", "8", "4", "2", "1"],
                    default="any",
                    tooltip="any: as many steps as the teacher, with any sampler. A number: stage two "
                    "halves the steps from "
                    "8 (or 16) down to it; sample with as many steps, euler and simple.",
                ),
                inputs.seed("Of the states, the scales and the adapter."),
                io.Int.Input(
                    "batch",
                    default=4,
                    min=1,
                    max=1024,
                    advanced=True,
                    tooltip="States an update. Memory grows with it.",
                ),
                io.Int.Input(
                    "rank", default=16, min=1, max=512, advanced=True, tooltip="Of the LoRA on every layer."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.001,
                    min=0.000001,
                    max=0.1,
                    step=0.0001,
                    round=False,
                    advanced=True,
                    tooltip="Lower it if the loss climbs.",
                ),
                io.Int.Input(
                    "step_updates",
                    default=600,
                    min=1,
                    max=1000000,
                    advanced=True,
                    tooltip="Of each halving of the steps in stage two.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=False,
                    advanced=True,
                    tooltip="The negative prompt of the teacher's guidance, which the student keeps.",
                ),
                io.Combo.Input(
                    "learn_from",
                    options=["model", "pictures"],
                    default="model",
                    advanced=True,
                    tooltip="model: the states come from the teacher's own trajectories, no picture is "
                    "needed.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=True,
                    advanced=True,
                    tooltip="Less memory, about a third more time.",
                ),
                io.Int.Input(
                    "students",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="More than 1: the prompts are split by likeness, and each part gets a student "
                    "of its own, trained one "
                    "after the other. A batch may mix them.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Noise levels of the first student of stage two, such as from Stability Grid. "
                    "Default: simple.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The student. Sample it at CFG 1."),
                io.Image.Output(
                    display_name="plot", tooltip="The loss of every update, and what the student draws."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, g_min: float = 1.0, g_max: float = 8.0) -> bool | str:
        if g_min >= g_max:
            return (
                f"g_min is {g_min:g} and g_max {g_max:g}: expected the lower scale in g_min, such as 1 and 8."
            )
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompts: str,
        latent: dict,
        name: str,
        updates: int,
        g_min: float,
        g_max: float,
        student_steps: str,
        seed: int,
        batch: int = 4,
        rank: int = 16,
        learning_rate: float = 0.001,
        step_updates: int = 600,
        negative: str = "",
        learn_from: str = "model",
        gradient_checkpointing: bool = True,
        students: int = 1,
        sigmas: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        steps = 0 if student_steps == "any" else int(student_steps)
        first_steps = max(8, steps) if sigmas is None else len(sigmas) - 1
        samples = comfy.sample.fix_empty_latent_channels(
            model, latent["samples"], latent.get("downscale_ratio_spacial")
        )
        path = student_path(name)
        job = Job(
            model,
            type(model.model.model_config).__name__,
            [line.strip() for line in prompts.splitlines() if line.strip()],
            lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text)),
            tuple(samples.shape[1:]),
            Plan(updates, (g_min, g_max), batch, learning_rate, seed, rank, steps, first_steps, step_updates),
            path,
            negative,
            samples if learn_from == "pictures" else None,
            sigmas,
            gradient_checkpointing,
        )
        show = Show(model, (g_min + g_max) / 2)
        if students > 1:
            manifest, results = several.distil_several(job, students, show)
            student = routing.students_of(model, manifest, several.loader(path, manifest), path.name)
        else:
            results = [distil(job, show)]
            student = native.student_of(model, results[0].adapter, path.name)
        pictures = [
            plot.draw(result.losses, len(result.losses), result.borders, show.pictures) for result in results
        ]
        return io.NodeOutput(student, torch.cat([_image(picture) for picture in pictures]))


def student_path(name: str) -> Path:
    """Where a student of this name is saved; raises OutsideModelsFolder."""
    root = Path(folder_paths.get_folder_paths(FOLDER)[0])
    return inside(root, name.strip().removesuffix(".safetensors") + ".safetensors")


class Show:
    """The observer behind the progress bar: polls for interruption, draws the loss and the student's pictures
    as the preview.
    """

    def __init__(self, model: Any, g: float) -> None:
        self.g = g
        self.previewer = previewer_of(model)
        self.bar = comfy.utils.ProgressBar(1)
        self.pictures: list[Image.Image] = []

    def __call__(self, running: Running, progress: Progress) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview, updates, of = None, len(progress.losses), running.training.total
        if updates % PREVIEW_EVERY == 0 or updates == of:
            if self.previewer is not None:
                self.pictures = [
                    self.previewer.decode_latent_to_preview(row[None])
                    for row in running.samples(PREVIEWED, self.g)
                ]
            preview = ("JPEG", plot.draw(progress.losses, of, running.borders, self.pictures), plot.WIDTH)
        self.bar.update_absolute(running.done, running.total, preview)


def previewer_of(model: Any) -> Any:
    """Core's, also where the user has turned previews off: what the student draws is a result of the node.
    None: it has no colours.
    """
    latents = model.model.latent_format
    chosen = latent_preview.get_previewer(model.load_device, latents)
    if chosen is not None or latents.latent_rgb_factors is None:
        return chosen
    return latent_preview.Latent2RGBPreviewer(
        latents.latent_rgb_factors, latents.latent_rgb_factors_bias, latents.latent_rgb_factors_reshape
    )


def _image(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).float().div(255)[None]
