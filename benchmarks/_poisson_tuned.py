# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded teacher, trained further with noise of one law: Poisson, or Gaussian to compare with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from ..noise.poisson import lengths, stretched
from ..tiny import networks, recipe, train

SEED, PICTURES = 20271, 4000
SCHEDULE = train.Schedule(updates=250, decay=150, batch=16, rate=1e-4)
QUICK = train.Schedule(updates=4, decay=2, batch=4, rate=1e-4)


@dataclass(frozen=True)
class PoissonDiffusion(train.Diffusion):
    """The forward process with noise of D; of D = 0 it is Gaussian."""

    D: int = 0

    def noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        z = super().noise(shape, generator)
        return stretched(z, lengths(self.D, len(z), generator)) if self.D else z


def write_tuned(pipeline: Path, work: Path, D: int, quick: bool) -> Path:
    """A diffusers folder below ``work``: the teacher of ``pipeline`` after some updates with noise of D. Goes
    on where an earlier run stopped.
    """
    unet = UNet2DConditionModel.from_pretrained(pipeline / "teacher", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder", torch_dtype=torch.float32)
    folder = work / f"{'quick-' if quick else ''}D{D}"
    tuned = train.train_teacher(
        train.TextToLatent(unet, text_encoder.requires_grad_(False)),
        recipe.training_pictures(work, recipe.tokenizer_folder(), PICTURES, SEED),
        PoissonDiffusion(**vars(train.Diffusion.of(networks.scheduler())), D=D),
        folder,
        QUICK if quick else SCHEDULE,
        SEED,
    )
    cast(UNet2DConditionModel, tuned.unet).save_pretrained(folder / "teacher")
    for part in ("scheduler", "vae"):  # which say how the network's numbers are to be read
        shutil.copytree(pipeline / part, folder / part, dirs_exist_ok=True)
    return folder / "teacher"
