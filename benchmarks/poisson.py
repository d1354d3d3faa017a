# SPDX-License-Identifier: GPL-3.0-or-later
"""Poisson noise beside Gaussian noise, on the embedded models, which were trained with Gaussian noise, and on
the embedded teacher trained further with the noise that it is sampled with: captions shown and spread of
pictures, with predictions as they are, rounded to fp16, and off by a tenth.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ._draft_subjects import pipeline_of
from ._drafted import each_call, nudged, quiet
from ._poisson_tuned import write_tuned

ROOT = Path(__file__).resolve().parents[1]
TUNED = "tiny/teacher, trained further"
MODELS = {"tiny": 1.0, "tiny/flow": 2.0, TUNED: 4.0}
"""Their CFG."""
GUIDANCE = 4.0
LAWS = {"Gaussian": 0, "D = 2048": 2048, "D = 64": 64}
SAMPLERS = ("euler", "euler_ancestral")
STEPS, SEED, BATCH, STEP_ERROR = 20, 20270, 16, 0.1


def halved() -> AbstractContextManager[None]:
    """Predictions rounded to fp16."""
    return each_call(lambda model, x, sigma, arguments, result: result.half().to(result.dtype))


DISTURBED: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "nothing": nullcontext,
    "fp16": halved,
    "off by 0.1": functools.partial(nudged, STEP_ERROR),
}


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a model, sampler, law of noise and disturbance."""
    from ..devtools.inprocess import enter_comfyui
    from ..tiny import reader
    from ..tiny.evaluate import test_captions

    enter_comfyui(ROOT)
    quiet()
    count, models = (16, ["tiny", TUNED]) if quick else (48, list(MODELS))
    captions = test_captions(SEED, count, (1, 2))
    rows = []
    for name, law in itertools.product(models, LAWS):
        draw = drawer(name, LAWS[law], quick)
        for sampler, disturbed in itertools.product(SAMPLERS, DISTURBED):
            with DISTURBED[disturbed]():
                shown = draw([str(caption) for caption in captions], sampler)
                alike = draw([str(captions[0])] * (count // 2), sampler)
            rows.append(
                {
                    "model": name,
                    "sampler": sampler,
                    "noise": law,
                    "disturbed by": disturbed,
                    "captions shown": 100 * reader.accuracy(captions, shown),
                    "spread": reader.spread(alike),
                }
            )
            print(rows[-1], flush=True)
    return rows


def parts_of(name: str, D: int, quick: bool) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE; of TUNED the model that was trained with noise of D."""
    from ..students.loader import Source, load_unet

    if name != TUNED:
        return pipeline_of(name)
    _, clip, vae = pipeline_of("tiny")
    folder = write_tuned(ROOT / "tiny", ROOT / ".dev" / "poisson", D, quick)
    return load_unet(Source(folder, name)), clip, vae


def drawer(name: str, D: int, quick: bool) -> Callable[[list[str], str], list[Image.Image]]:
    """Draws a picture a caption with a sampler, with noise of D; 0 is Gaussian."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    from ..nodes.noise import PoissonNoise

    model, clip, vae = parts_of(name, D, quick)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)

    def condition(texts: list[str]) -> list[Any]:
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
        pooled = [about["pooled_output"] for _, about in encoded if about.get("pooled_output") is not None]
        about = {"pooled_output": torch.cat(pooled)} if pooled else {}
        return [[torch.cat([rows for rows, _ in encoded]), {**about, "guidance": GUIDANCE}]]

    def draw(texts: list[str], sampler: str) -> list[Image.Image]:
        guider, core = comfy.samplers.CFGGuider(model), comfy.samplers.sampler_object(sampler)
        guider.set_cfg(MODELS[name])
        pictures: list[Tensor] = []
        for first in range(0, len(texts), BATCH):
            some = texts[first : first + BATCH]
            guider.set_conds(condition(some), condition([""]))
            noise, steps = (
                PoissonNoise.execute(SEED + first, D, core).result
                if D
                else (Noise_RandomNoise(SEED + first), core)
            )
            latent = {"samples": torch.zeros(len(some), vae.latent_channels, 12, 12)}
            result = SamplerCustomAdvanced.execute(noise, guider, steps, sigmas, latent).result[0]
            pictures.append(vae.decode(result["samples"]))
        pixels = torch.cat(pictures).mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        return [Image.fromarray(picture.numpy()) for picture in pixels]

    return draw


def table(rows: list[dict[str, Any]]) -> str:
    """A line a model, sampler and noise; captions shown in %, and in brackets the spread in pixels."""
    lines = [
        f"Captions shown, %, and in brackets the spread of pictures of one caption, pixels. {STEPS} steps.",
        "",
        "| model | sampler | noise | " + " | ".join(DISTURBED) + " |",
        "|---|---|---|" + "---|" * len(DISTURBED),
    ]
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        cells = groups.setdefault((row["model"], row["sampler"], row["noise"]), [])
        cells.append(f"{row['captions shown']:.0f} ({row['spread']:.1f})")
    for of in itertools.product(MODELS, SAMPLERS, LAWS):
        if of in groups:
            lines.append(f"| {' | '.join([*of, *groups[of]])} |")
    return "\n".join(lines) + "\n"
