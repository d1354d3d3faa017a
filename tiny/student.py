# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe's student: distilled from the exported teacher by the engine for users' models, and merged into
diffusers' layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..students.distill.job import Job
from ..students.distill.merged import write_folder
from ..students.distill.plan import Plan
from ..students.distill.run import Observer, distill
from ..students.distill.teacher import diffusers_names
from ..students.loader import Source, load_unet
from ..students.pipeline import load_clip
from .evaluate import test_captions

SEED = 51
LATENT = (4, 12, 12)
PLAN = Plan(updates=2000, scales=(1.0, 8.0), batch=32, rate=2e-3, seed=SEED)
CAPTIONS = 2000


def captions(count: int) -> list[str]:
    """The prompts of the distillation."""
    return [str(caption) for caption in test_captions(SEED, count, (1, 2))]


@dataclass(frozen=True)
class Embedded:
    """An exported teacher (MODEL) and its text encoder (CLIP), as ComfyUI holds them. shape: of a latent."""

    teacher: Any
    clip: Any
    name: str = "tiny/teacher"
    shape: tuple[int, ...] = LATENT

    def encode(self, text: str) -> list:
        """CONDITIONING."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def job(self, file: Path, prompts: list[str], plan: Plan = PLAN) -> Job:
        """What is distilled into ``file``."""
        return Job(
            teacher=self.teacher,
            teacher_name=self.name,
            prompts=prompts,
            encode=self.encode,
            shape=self.shape,
            plan=plan,
            path=file,
            checkpointing=False,
        )


def embedded(folder: Path) -> Embedded:
    """The pipeline in ``folder``. ComfyUI must be importable."""
    return Embedded(load_unet(Source(folder / "teacher", "tiny/teacher")), load_clip(folder, []))


def make_student(
    folder: Path, file: Path, observe: Observer, plan: Plan = PLAN, prompts: int = CAPTIONS
) -> list[float]:
    """``folder``/unet becomes the student of ``folder``/teacher, by way of its adapter in ``file``; the loss
    of every update.
    """
    pipeline = embedded(folder)
    result = distill(pipeline.job(file, captions(prompts), plan), observe)
    write_folder(folder, folder / "teacher", result.adapter, diffusers_names(pipeline.teacher))
    return result.losses
