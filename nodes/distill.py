# SPDX-License-Identifier: GPL-3.0-or-later
"""Distill Guidance: a guided student from the MODEL in the graph."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy_api.latest import io
from PIL import Image

from ..common.messages import both, inform, warn
from ..common.pictures import image_of
from ..students.distill import plot, presets
from ..students.distill.errors import Diverged, UnsupportedTeacher
from ..students.distill.guider import dials_in
from ..students.distill.job import Job
from ..students.distill.pace import Pace, described
from ..students.distill.plan import NO_PROMPTS, Plan
from ..students.distill.presets import CUSTOM, with_preset
from ..students.distill.prompt_files import lines_of, read_prompts
from ..students.distill.run import Running, distill
from ..students.distill.several import distill_several
from ..students.distill.training import Progress
from ..students.errors import StudentError
from ..students.guidance import HIGHEST_SCALE
from ..students.library import inside
from ..students.student_model import student_of, students_of
from .distill_guider import teacher_guider
from .distill_inputs import all_inputs
from .inputs import check_range
from .notice import show_at_node, show_progress_at_node
from .places import place_of
from .students import CATEGORY

PREVIEW_EVERY, PREVIEWED = 100, 4
LOGGED_AT = 10
"""Updates: the first rate in the log, then one a preview."""
FOLDER = "diffusion_models"


class DistillGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffDistillGuidance",
            display_name="Distill Guidance",
            category=CATEGORY,
            is_output_node=True,
            description="Trains a guided student of your own model: one pass a step where CFG takes two, for "
            "every guidance scale of a range, and on request in few steps. Saves what there is when "
            "interrupted, and goes on from there.",
            search_aliases=[
                "train",
                "lora",
                "guidance distillation",
                "cfg distill",
                "progressive distillation",
                "turbo",
                "lightning",
                "4 steps",
                "dmd",
                "student",
                "teacher",
                "蒸馏",
            ],
            inputs=all_inputs(),
            outputs=[
                io.Model.Output(tooltip="The student. Sample it at CFG 1."),
                io.Image.Output(
                    display_name="plot", tooltip="The loss of every update, and what the student draws."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        g_min: float | None = 1.0,
        g_max: float | None = 8.0,
        prompts: str | None = None,
        name: str | None = None,
        prompts_file: str | None = "",
        dials: str | None = None,
    ) -> bool | str:
        try:
            if prompts is not None and prompts_file is not None and not prompts_in(prompts, prompts_file):
                return NO_PROMPTS
            if name is not None:
                student_path(name)
            dials_in(dials or "")
        except StudentError as error:
            return str(error)
        for name, value in (("g_min", g_min), ("g_max", g_max)):
            if (wrong := check_range(name, value, 0.0, HIGHEST_SCALE)) is not True:
                return wrong
        if g_min is not None and g_max is not None and g_min >= g_max:
            return (
                f"g_min is {g_min:g} and g_max {g_max:g}: expected the lower scale in g_min, such as 1 and 8."
            )
        return True

    @classmethod
    def fingerprint_inputs(cls, prompts_file: str = "", **others: Any) -> Any:
        """A file of prompts may have changed under the same name."""
        return prompts_in("", prompts_file)

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
        dials: str = "cfg",
        guider: Any = None,
        preset: str = CUSTOM,
        prompts_file: str = "",
    ) -> io.NodeOutput:
        samples = latents_of(model, latent)
        job = Job(
            teacher=model,
            teacher_name=type(model.model.model_config).__name__,
            prompts=prompts_in(prompts, prompts_file),
            encode=lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text)),
            shape=tuple(samples.shape[1:]),
            plan=Plan(
                updates=updates,
                scales=(g_min, g_max),
                batch=batch,
                rate=learning_rate,
                seed=seed,
                rank=rank,
                **stage_two(student_steps, step_updates, sigmas),
            ),
            path=student_path(name),
            negative=negative,
            latents=samples if learn_from == "pictures" else None,
            stage_two_sigmas=sigmas,
            checkpointing=gradient_checkpointing,
            guider=teacher_guider(model, negative, guider, dials),
        )
        return io.NodeOutput(*trained(at_preset(job, preset), students))


def at_preset(job: Job, preset: str) -> Job:
    """With the numbers of a preset, which the node says."""
    if preset == CUSTOM:
        return job
    both(inform, show_at_node)(presets.sentence(preset))
    return replace(job, plan=with_preset(job.plan, preset))


def prompts_in(text: str, file: str | None) -> list[str]:
    """One a line of the text, then those of a file in ComfyUI's input folder, if there is one. Raises
    StudentError.
    """
    if not file or not file.strip():
        return lines_of(text)
    root = Path(folder_paths.get_input_directory())
    return [*lines_of(text), *read_prompts(inside(root, file.strip()))]


def stage_two(student_steps: str, step_updates: int, sigmas: torch.Tensor | None) -> dict[str, int]:
    """What a plan says of it; steps = 0 for stage one alone."""
    steps = 0 if student_steps == "any" else int(student_steps)
    first_steps = max(8, steps) if sigmas is None else len(sigmas) - 1
    return {"steps": steps, "first_steps": first_steps, "step_updates": step_updates}


def latents_of(model: Any, latent: dict) -> torch.Tensor:
    """A LATENT's rows with the channels of the model. Raises UnsupportedTeacher."""
    if getattr(latent["samples"], "is_nested", False):
        raise UnsupportedTeacher(
            "The latent holds several parts, such as video and sound: such models cannot be distilled. "
            "Expected a latent of pictures alone."
        )
    downscale = latent.get("downscale_ratio_spacial")
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], downscale)


def trained(job: Job, students: int) -> tuple[Any, torch.Tensor]:
    """The student as MODEL, and a plot of each training as one IMAGE."""
    show, job = Show(job.teacher, sum(job.plan.scales) / 2), replace(job, say=both(warn, show_at_node))
    with show.saying_what_is_saved():
        if students > 1:
            manifest, results = distill_several(job, students, show)
            student = students_of(job.teacher, manifest, job.path.name)
        else:
            results = [distill(job, show)]
            student = student_of(job.teacher, results[0].adapter, job.path.name)
    plots = [plot.draw(each.losses, len(each.losses), each.stage_ends, show.pictures) for each in results]
    return student, torch.cat([image_of(each) for each in plots])


def student_path(name: str) -> Path:
    """Where a student of this name is, or is to be saved; raises OutsideModelsFolder."""
    return place_of(FOLDER, name)


class Show:
    """The observer behind the progress bar: polls for interruption, says how long it still takes, draws the
    loss and the student's pictures as the preview.
    """

    def __init__(self, model: Any, g: float) -> None:
        self.g = g
        self.previewer = previewer_of(model)
        self.bar = comfy.utils.ProgressBar(1)
        self.pictures: list[Image.Image] = []
        self.running: Running | None = None
        self.pace = Pace()

    @contextlib.contextmanager
    def saying_what_is_saved(self) -> Iterator[None]:
        """Of a training that ends before its end."""
        try:
            yield
        except Diverged:  # and would again, with the same settings
            raise
        except BaseException:  # an interruption by the user is one
            if self.running is not None and (sentence := described(self.running)) is not None:
                both(inform, show_at_node)(sentence)
            raise

    def __call__(self, running: Running, progress: Progress) -> None:
        if running is not self.running:
            self.running, self.pace = running, Pace()
        if (sentence := self.pace.sentence(running.done, running.total)) is not None:
            show_progress_at_node(sentence)
            if len(progress.losses) == LOGGED_AT or len(progress.losses) % PREVIEW_EVERY == 0:
                inform(sentence)
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview, updates, of = None, len(progress.losses), running.training.total
        if updates % PREVIEW_EVERY == 0 or updates == of:
            if self.previewer is not None:
                self.pictures = [
                    self.previewer.decode_latent_to_preview(row[None])
                    for row in running.samples(PREVIEWED, self.g)
                ]
            preview = ("JPEG", plot.draw(progress.losses, of, running.stage_ends, self.pictures), plot.WIDTH)
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
