# SPDX-License-Identifier: GPL-3.0-or-later
"""Training pictures as latents: drawn once, kept on disk, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..common.files import write_safetensors
from . import codec, scene

SHARE_OF_ONE_THING = 0.3
SHARD, ENCODED_AT_ONCE = 2000, 100

Encode = Callable[[Tensor], Tensor]
"""Latents [B, channels, H/8, W/8] of pictures [B, 3, H, W] in [0, 1]; a module's function, since processes
share it."""


def picture_tensor(image) -> Tensor:
    """[3, H, W] in [0, 1] of a Pillow picture."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def _draw_shard(file: Path, seed: int, encode: Encode) -> None:
    """``file`` becomes SHARD latents in fp16 with their captions."""
    if file.exists():
        return
    torch.set_num_threads(1)
    rng = random.Random(seed)
    captions: list[str] = []
    latents: list[Tensor] = []
    for _ in range(SHARD // ENCODED_AT_ONCE):
        pictures = []
        for _ in range(ENCODED_AT_ONCE):
            caption = scene.random_caption(rng, 1 if rng.random() < SHARE_OF_ONE_THING else 2)
            captions.append(str(caption))
            pictures.append(picture_tensor(scene.draw(caption, rng)))
        latents.append(encode(torch.stack(pictures)).half())
    write_safetensors(file, {"latents": torch.cat(latents)}, {"captions": "\n".join(captions)})


def training_set(
    folder: Path, pictures: int, seed: int, encode: Encode = codec.encode
) -> tuple[list[str], Tensor]:
    """Captions and latents [pictures, channels, 12, 12] in fp16 from ``folder``; what is not there yet is
    drawn first. ``pictures`` are counted in whole shards of SHARD.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [seed * 1_000_003 + i for i in range(pictures // SHARD)]
    files = [folder / f"pictures-{shard}.safetensors" for shard in seeds]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_draw_shard, files, seeds, [encode] * len(seeds)))
    captions: list[str] = []
    latents: list[Tensor] = []
    for file in files:
        with safe_open(file, framework="pt") as shard:
            captions += shard.metadata()["captions"].split("\n")
            latents.append(shard.get_tensor("latents"))
    return captions, torch.cat(latents)
