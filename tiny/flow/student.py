# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow model's guided student: distilled from the exported teacher by the engine for users' models, and
kept as the adapter that the engine writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from PIL import Image

from ...students import files
from ...students.adapter import LAYERS, PROJECTION
from ...students.distill import saving
from ...students.distill.plan import Plan
from ...students.distill.run import Observer, distill
from ...students.loader import Source, load_unet
from ...students.pipeline import load_clip
from .. import evaluate, scene
from ..student import Embedded, captions
from .evaluate import BATCH, STEPS, noise_of
from .network import LATENT
from .pipeline import MODEL, NAME, STUDENT, Loaded

SEED = 51
PLAN = Plan(updates=2000, scales=(1.0, 6.0), batch=32, rate=2e-3, seed=SEED)
CAPTIONS = 2000


def embedded(pipeline: Path) -> Embedded:
    """The flow model in ``pipeline``/flow as a teacher. ComfyUI must be importable."""
    teacher = load_unet(Source(pipeline / "flow" / MODEL, NAME))
    return Embedded(teacher, load_clip(pipeline, []), NAME, LATENT)


def make_student(
    pipeline: Path, file: Path, observe: Observer, plan: Plan = PLAN, prompts: int = CAPTIONS
) -> list[float]:
    """Train into ``file``, resumed where it stopped, and write ``pipeline``/flow/student.safetensors; the
    loss of every update.
    """
    result = distill(embedded(pipeline).job(file, captions(prompts), plan), observe)
    write_student(pipeline / "flow" / STUDENT, file)
    return result.losses


def write_student(path: Path, trained: Path) -> None:
    """A finished adapter in fp16, without its losses."""
    tensors, metadata = files.read_weights((trained,))
    kept = {key: value.half() for key, value in tensors.items() if key.startswith((LAYERS, PROJECTION))}
    saving.write(path, kept, metadata)


@dataclass(frozen=True, eq=False)
class Judge:
    """Reads what ComfyUI draws by Euler and core's ``simple`` sigmas, from the noises that the teacher is
    judged by.
    """

    loaded: Loaded

    def encode(self, text: str) -> list:
        """CONDITIONING."""
        return self.loaded.clip.encode_from_tokens_scheduled(self.loaded.clip.tokenize(text))

    def score(self, asked: Sequence[scene.Caption], g: float, seed: int) -> float:
        """Percent of the pictures, one pass a step, that show their caption at guidance ``g``."""
        images: list[Image.Image] = []
        for start in range(0, len(asked), BATCH):
            images += self.draw(asked[start : start + BATCH], g, noise_of(seed, range(start, start + BATCH)))
        return round(evaluate.accuracy(asked, images), 1)

    @torch.inference_mode()
    def draw(self, asked: Sequence[scene.Caption], g: float, noise: torch.Tensor) -> list[Image.Image]:
        """A picture a caption. noise: [n, 16, 12, 12], at least a row a caption."""
        model, noise = self.loaded.model, noise[: len(asked)]
        encoded = [self.encode(str(caption))[0] for caption in asked]
        context = torch.cat([each[0] for each in encoded])
        pooled = torch.cat([each[1]["pooled_output"] for each in encoded])
        positive: list[Any] = [[context, {"pooled_output": pooled, "guidance": g}]]
        latents = comfy.sample.sample_custom(
            model,
            noise,
            1.0,
            comfy.samplers.sampler_object("euler"),
            comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS),
            positive,
            self.encode(""),
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )
        pixels = self.loaded.vae.decode(latents).mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        return [Image.fromarray(picture.numpy()) for picture in pixels]
