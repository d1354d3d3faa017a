# SPDX-License-Identifier: GPL-3.0-or-later
"""The inputs of Distill Guidance."""

from __future__ import annotations

from comfy_api.latest import io

from ..students.distill.presets import CUSTOM, PRESETS


def all_inputs() -> list[io.Input]:
    return [*teacher(), *guidance(), *optimiser(), *special(), *guider(), *shortcuts()]


def teacher() -> list[io.Input]:
    """What is taught by what, on which pictures."""
    return [
        io.Model.Input("model", tooltip="The teacher: a model that is sampled with CFG."),
        io.Clip.Input("clip", tooltip="The teacher's text encoder."),
        io.String.Input(
            "prompts",
            multiline=True,
            default="",
            tooltip="One a line, of the kind the student will be asked for. A few hundred different ones are "
            "better than a few.",
        ),
        io.Latent.Input(
            "latent",
            tooltip="Its size is the one that is trained. With learn_from = pictures: the encoded pictures, "
            "the first for the first prompt and so on.",
        ),
        io.String.Input(
            "name",
            default="my_student",
            tooltip="The student becomes models/diffusion_models/NAME.safetensors. If that file is of the "
            "same training, it goes on from there.",
        ),
    ]


def guidance() -> list[io.Input]:
    """The range of the scale, and how many steps are left."""
    return [
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
            tooltip="any: as many steps as the teacher, with any sampler. A number: stage two halves the "
            "steps from 8 (or 16) down to it; sample with as many steps, euler and simple.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            # Another seed is another training: queued again, this one is to go on.
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Of the states, the scales and the adapter. Keep it to go on with a training.",
        ),
    ]


def optimiser() -> list[io.Input]:
    """What most users leave as it is."""
    return [
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
    ]


def special() -> list[io.Input]:
    """What few users need."""
    return [
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
            tooltip="model: the states come from the teacher's own trajectories, no picture is needed.",
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
            tooltip="More than 1: the prompts are split by likeness, and each part gets a student of its "
            "own, trained one after the other. A batch may mix them.",
        ),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Noise levels of the first student of stage two, such as from Stability Grid. Default: "
            "simple.",
        ),
    ]


def guider() -> list[io.Input]:
    """The teacher's guidance, where it is not CFG."""
    return [
        io.String.Input(
            "dials",
            default="cfg",
            multiline=False,
            optional=True,
            advanced=True,
            tooltip="With a guider: which of its numbers become scales of the student, one or two, such as "
            "cfg or cfg1, cfg2. The others stay as they are; empty: all of them.",
        ),
        io.Guider.Input(
            "guider",
            optional=True,
            tooltip="What guides the teacher, with its patches (PAG, skip-layer, Rescale CFG, APG) and its "
            "negative prompt; each of the prompts takes the place of its positive one. Default: CFG.",
        ),
    ]


def shortcuts() -> list[io.Input]:
    """In the place of numbers and of long texts."""
    return [
        io.Combo.Input(
            "preset",
            options=[CUSTOM, *PRESETS],
            default=CUSTOM,
            optional=True,
            tooltip="Takes the place of updates, batch, rank, learning_rate and step_updates. quick look: "
            "whether it works at all; good: the default numbers; best: many times as long.",
        ),
        io.String.Input(
            "prompts_file",
            default="",
            optional=True,
            advanced=True,
            tooltip="More prompts: a .txt (one a line) or .csv (column prompt, caption or text) in "
            "ComfyUI's input folder.",
        ),
    ]
