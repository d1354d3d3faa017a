# SPDX-License-Identifier: GPL-3.0-or-later
"""Guided students: load one, sample it."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
from comfy_api.latest import io

from ..common.messages import both, inform
from ..students import library
from ..students.errors import StudentError
from ..students.files import check_header
from ..students.loader import WEIGHT_DTYPES, Source, load_unet
from ..students.pipeline import load_clip, load_vae
from ..students.recipe import description
from ..students.sampler import sample_student_native
from ..students.student_model import IN_MEMORY, distilled, load_student
from ..tiny.flow import pipeline as flow
from .cfg import warning_of_guidance
from .inputs import check_range
from .notice import show_at_node

CATEGORY = "DizzyDiff/students"
EMBEDDED = Path(__file__).parent.parent / "tiny"
STUDENT = [
    "lcm",
    "guidance distilled",
    "cfg distilled",
    "distilled model",
    "few step",
    "4 steps",
    "anyflow",
    "twinflow",
    "meanflow",
    "flow map",
    "student",
    "unet",
    "蒸馏",
    "引导蒸馏",
]
"""What users search who have a distilled network."""
FILE_KINDS = ("diffusion_models", "checkpoints")


def _roots(kind: str) -> list[Path]:
    return [Path(path) for path in folder_paths.get_folder_paths(kind)]


def _student_folders() -> Mapping[str, Path]:
    pipelines = library.pipeline_unets(_roots("diffusers"), EMBEDDED)
    return {**library.lone_unets(_roots("diffusion_models")), **pipelines}


def _two_times() -> Mapping[str, Path]:
    return library.second_time_folders([*_roots("diffusers"), *_roots("diffusion_models")])


def _path_of(student: str) -> Path:
    roots = [root for kind in FILE_KINDS for root in _roots(kind)]
    return library.find_student(student, {**_two_times(), **_student_folders()}, roots)


class LoadStudent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = [name for kind in FILE_KINDS for name in folder_paths.get_filename_list(kind)]
        return io.Schema(
            node_id="DizzyDiffLoadStudent",
            display_name="Load Guided Student",
            category=CATEGORY,
            description="Loads a network distilled for every guidance scale (LCM, cfg-distill, your own) as "
            "a MODEL. One pass a step: sample it at CFG 1 and set the guidance with Student Guidance or "
            "FluxGuidance. Also networks with a second time: AnyFlow, TwinFlow, MeanFlow.",
            search_aliases=STUDENT,
            inputs=[
                io.Combo.Input(
                    "student",
                    options=list(
                        dict.fromkeys([*files, *library.students_among(_student_folders()), *_two_times()])
                    ),
                    tooltip="A .safetensors file, or the folder of a UNet or of a transformer with two times "
                    "(AnyFlow, TwinFlow) in diffusers layout.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="What the weights are stored as. The guidance is always embedded in fp32.",
                ),
                io.Model.Input(
                    "teacher",
                    optional=True,
                    tooltip="Only for students made by Distill Guidance: the model they were distilled from.",
                ),
                io.Int.Input(
                    "students_in_memory",
                    default=IN_MEMORY,
                    min=1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="Of several students that share the prompts between them: how many are held at a "
                    "time. The others are read when a prompt needs them.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The student. Sample it at CFG 1.")],
        )

    @classmethod
    def validate_inputs(cls, student: str | None = None) -> bool | str:
        try:
            if student is not None and not (path := _path_of(student)).is_dir():
                check_header(path)
        except StudentError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        student: str,
        weight_dtype: str = "default",
        teacher: Any = None,
        students_in_memory: int = IN_MEMORY,
    ) -> io.NodeOutput:
        source = Source(_path_of(student), student, weight_dtype)
        model = load_student(source, teacher, students_in_memory)
        if (found := distilled(model)) is not None:
            saved_on = datetime.fromtimestamp(source.path.stat().st_mtime)
            both(inform, show_at_node)(f"{description(found)} Saved on {saved_on:%Y-%m-%d}.")
        return io.NodeOutput(warning_of_guidance(model))


class LoadPipeline(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffLoadPipeline",
            display_name="Load Student Pipeline",
            category=CATEGORY,
            description="Loads a diffusers folder of any size: model, text encoder and VAE. 'tiny' comes "
            "with the pack; 'tiny/teacher' is its teacher, and 'tiny/flow' a flow model of Flux's layout, "
            "both to be sampled with CFG. 'tiny/flow/student' is the latter's student.",
            search_aliases=["diffusers", "checkpoint", "tiny", "teacher", "student"],
            inputs=[
                io.Combo.Input(
                    "pipeline",
                    options=list(
                        dict.fromkeys(
                            [
                                library.EMBEDDED,
                                flow.NAME,
                                flow.STUDENT_NAME,
                                *library.pipeline_unets(_roots("diffusers"), EMBEDDED),
                            ]
                        )
                    ),
                    default=library.EMBEDDED,
                    tooltip="A folder with model_index.json under models/diffusers, or one that comes with "
                    "the pack.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="The UNet: a student is sampled at CFG 1, a teacher with CFG."),
                io.Clip.Output(tooltip="The text encoder, for prompts."),
                io.Vae.Output(tooltip="Between pictures and latents."),
            ],
        )

    @classmethod
    def execute(cls, pipeline: str) -> io.NodeOutput:
        if pipeline in (flow.NAME, flow.STUDENT_NAME):
            embeddings = folder_paths.get_folder_paths("embeddings")
            model, clip, vae = flow.load(EMBEDDED, embeddings, student=pipeline == flow.STUDENT_NAME)
            return io.NodeOutput(warning_of_guidance(model), clip, vae)
        unet = library.find_pipeline(pipeline, _roots("diffusers"), EMBEDDED)
        return io.NodeOutput(
            warning_of_guidance(load_unet(Source(unet, pipeline))),
            load_clip(unet.parent, folder_paths.get_folder_paths("embeddings")),
            load_vae(unet.parent),
        )


class StudentSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffStudentSampler",
            display_name="N-Step Student Sampler",
            category=CATEGORY,
            description="The N-step sampler of guided students (Meng et al. 2023): steps twice the length, "
            "then takes noise one step back. For SamplerCustom.",
            search_aliases=["few step", "guidance distilled", "stochastic", "restyle", "inversion"],
            inputs=[
                io.Float.Input(
                    "eta",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1: the stochastic sampler; 0: deterministic (DDIM).",
                )
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(cls, eta: float | None = 1.0) -> bool | str:
        return check_range("eta", eta, 0.0, 1.0)

    @classmethod
    def execute(cls, eta: float) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_student_native, extra_options={"eta": eta}))
