# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded teacher and student: real networks, whose pictures are read exactly."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..stability.profile import Effort, Profile
from ..tiny import reader
from ..tiny.evaluate import test_captions
from ._stability_mixtures import CALIBRATION_SEED, SEED, Case

TINY = Path(__file__).resolve().parents[1] / "tiny"
LATENT = (4, 12, 12)
BATCH = 16
GUIDANCE = 4.0


def picture_cases(quick: bool) -> Iterable[Case]:
    """Teacher at CFG 1, 4 and 8, and student at g = 4; measured with one prompt, compared on as many others
    as there are seeds.
    """
    seeds = 16 if quick else 64
    for cfg in (GUIDANCE,) if quick else (1.0, 4.0, 8.0):
        yield picture_case("teacher", cfg, seeds)
    if not quick:
        yield picture_case("unet", 1.0, seeds)


def picture_case(folder: str, cfg: float, seeds: int) -> Case:
    import comfy.sample
    from comfy.samplers import sampler_object

    from ..stability.subject import Subject, measure_model
    from ..students.loader import Source, load_unet
    from ..students.pipeline import load_clip, load_vae

    model, clip, vae = load_unet(Source(TINY / folder, folder)), load_clip(TINY, []), load_vae(TINY)
    captions = test_captions(SEED, seeds, (1, 2))
    noise = torch.randn(seeds, *LATENT, generator=torch.Generator().manual_seed(SEED))

    def condition(texts: list[str]) -> list[Any]:
        rows = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0] for text in texts]
        return [[torch.cat(rows), {"guidance": GUIDANCE}]]

    references: list[float] = []
    empty, positives = condition([""]), condition([str(caption) for caption in captions])[0][0]

    def profile(effort: Effort) -> Profile:
        prompt = condition([str(test_captions(CALIBRATION_SEED, 2, (2,))[0])])
        latent = {"samples": torch.zeros(effort.probes, *LATENT)}
        return measure_model(
            Subject(model, prompt, empty, cfg, latent, CALIBRATION_SEED), effort, lambda made, of: None
        )

    def ends(grid: Tensor, solver: str) -> Tensor:
        return torch.cat(
            [
                comfy.sample.sample_custom(
                    model,
                    some,
                    cfg,
                    sampler_object(solver),
                    grid.float(),
                    [[context, {"guidance": GUIDANCE}]],
                    empty,
                    torch.zeros_like(some),
                    disable_pbar=True,
                    seed=SEED,
                )
                for some, context in zip(noise.split(BATCH), positives.split(BATCH), strict=True)
            ]
        )

    def judge(ends: Tensor, reference: Tensor) -> dict[str, float]:
        if not references:
            references.append(accuracy(reference))
        return {"prompt_accuracy": accuracy(ends), "reference_accuracy": references[0]}

    def accuracy(latents: Tensor) -> float:
        pixels = vae.decode(latents).mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        return 100 * reader.accuracy(captions, [Image.fromarray(picture.numpy()) for picture in pixels])

    name = f"tiny {'student, g 4' if folder == 'unet' else f'teacher, CFG {cfg:g}'}"
    return Case(name, model.get_model_object("model_sampling"), functools.cache(profile), ends, judge)
