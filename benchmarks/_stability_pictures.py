# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded teacher and student: real networks, whose pictures are read exactly."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..stability.profile import Effort, Profile
from ..stability.watched import Recorder, Run
from ..tiny import reader
from ..tiny.evaluate import test_captions
from ._draft_subjects import pipeline_of
from ._stability_mixtures import CALIBRATION_SEED, SEED, Case

SIZE = (12, 12)
PIPELINES = {
    "teacher": ("tiny/teacher", "tiny teacher"),
    "unet": ("tiny", "tiny student"),
    "flow": ("tiny/flow", "tiny/flow"),
    "flow student": ("tiny/flow/student", "tiny/flow student"),
}
"""The pipeline of each network, and what rows call it."""
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


def picture_case(name: str, cfg: float, seeds: int) -> Case:
    """name: of ``PIPELINES``; at CFG 1 a student is guided by its input."""
    import comfy.sample
    from comfy.samplers import sampler_object

    from ..stability.subject import Subject, measure_model

    pipeline, told = PIPELINES[name]
    model, clip, vae = pipeline_of(pipeline)
    shape = (vae.latent_channels, *SIZE)

    @functools.cache
    def encoded(text: str) -> tuple[Tensor, dict[str, Any]]:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]

    def condition(texts: list[str]) -> list[Any]:
        rows = [encoded(text) for text in texts]
        pooled = [row[1]["pooled_output"] for row in rows if row[1].get("pooled_output") is not None]
        options = {"pooled_output": torch.cat(pooled)} if pooled else {}
        return [[torch.cat([row[0] for row in rows]), {**options, "guidance": GUIDANCE}]]

    def noise(seed: int, rows: int) -> Tensor:
        return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))

    def sample(x: Tensor, texts: list[str], grid: Tensor, solver: str, callback: Any = None) -> Tensor:
        made = (condition(texts), condition([""]), torch.zeros_like(x))
        sampler, sigmas = sampler_object(solver), grid.float()
        return comfy.sample.sample_custom(
            model, x, cfg, sampler, sigmas, *made, callback=callback, disable_pbar=True, seed=SEED
        )

    references: list[float] = []
    captions = test_captions(SEED, seeds, (1, 2))

    def profile(effort: Effort) -> Profile:
        prompt = condition([str(test_captions(CALIBRATION_SEED, 2, (2,))[0])])
        latent = {"samples": torch.zeros(effort.probes, *shape)}
        return measure_model(
            Subject(model, prompt, condition([""]), cfg, latent, CALIBRATION_SEED),
            effort,
            lambda made, of: None,
        )

    def ends(grid: Tensor, solver: str) -> Tensor:
        texts = [str(caption) for caption in captions]
        batches = zip(noise(SEED, seeds).split(BATCH), range(0, seeds, BATCH), strict=True)
        return torch.cat([sample(x, texts[n : n + BATCH], grid, solver) for x, n in batches])

    def watched(grid: Tensor, solver: str, pictures: int) -> Run:
        texts = [str(caption) for caption in test_captions(CALIBRATION_SEED, pictures, (1, 2))]
        x = noise(CALIBRATION_SEED, pictures)
        recorder = Recorder(lambda *_: None, float(grid[0]) * x)
        sample(x, texts, grid, solver, recorder)
        return recorder.run(grid)

    def judge(ends: Tensor, reference: Tensor) -> dict[str, float]:
        if not references:
            references.append(accuracy(reference))
        return {"prompt_accuracy": accuracy(ends), "reference_accuracy": references[0]}

    def accuracy(latents: Tensor) -> float:
        pixels = vae.decode(latents).mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        return 100 * reader.accuracy(captions, [Image.fromarray(picture.numpy()) for picture in pixels])

    guided = f"g {GUIDANCE:g}" if told.endswith("student") else f"CFG {cfg:g}"
    sampling = model.get_model_object("model_sampling")
    return Case(f"{told}, {guided}", sampling, functools.cache(profile), ends, judge, watched=watched)
