# SPDX-License-Identifier: GPL-3.0-or-later
"""Training pictures as latents: drawn once, kept on disk, the same for the same seed."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import codec, scene

SHARE_OF_ONE_THING = 0.3
SHARD = 2000


def picture_tensor(image) -> Tensor:
    """[3, H, W] in [0, 1] of a Pillow picture."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def _shard(seed: int) -> tuple[list[str], Tensor]:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    captions, latents = [], []
    for _ in range(SHARD):
        caption = scene.random_caption(rng, 1 if rng.random() < SHARE_OF_ONE_THING else 2)
        captions.append(str(caption))
        latents.append(codec.encode(picture_tensor(scene.draw(caption, rng))[None])[0])
    return captions, torch.stack(latents)


def training_set(folder: Path, pictures: int, seed: int) -> tuple[list[str], Tensor]:
    """Captions and latents [pictures, 4, 12, 12] from ``folder``, drawn there first if need be."""
    file, captions_file = (
        folder / f"latents-{pictures}-{seed}.safetensors",
        folder / f"captions-{pictures}-{seed}.txt",
    )
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            shards = list(pool.map(_shard, [seed * 1_000_003 + i for i in range(pictures // SHARD)]))
        captions_file.write_text(
            "\n".join(caption for captions, _ in shards for caption in captions), encoding="utf-8"
        )
        half_written = file.with_suffix(".part")
        save_file({"latents": torch.cat([latents for _, latents in shards]).half()}, half_written)
        half_written.replace(file)
    return captions_file.read_text(encoding="utf-8").split("\n"), load_file(file)["latents"].float()
