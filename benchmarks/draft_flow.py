# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine on the embedded flow model, a transformer of Flux's layout, as such models are sampled: core's
``simple`` sigmas, with CFG and without.

A row is one setting: rounds and model calls (means over seeds), and how far the result is from the sequential
one with as many steps: deviation of the latent (RMS distance over RMS), PSNR and SSIM of the decoded picture.
Beside it as few plain steps as there were rounds, and drafts as in DRiffusion: frozen, and always used.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..compare.metrics import psnr, ssim
from ._draft_subjects import ROOT, Subject, embedded
from ._parallel_peers import relative_rms
from .draft_refine import drafted, one_by_one, side_by_side, spread_of

SAMPLERS = ("euler", "dpmpp_2m", "res_multistep", "er_sde", "euler_ancestral")
SMOOTH = ("euler", "dpmpp_2m", "res_multistep")
"""Those that add no noise: one device skips calls of these alone."""


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: Euler, 28 steps, widths 1 and 4, CFG 2, 4 seeds."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    settings = itertools.product((2.0, 1.0), SAMPLERS, (28, 50))
    chosen = [(2.0, "euler", 28)] if quick else list(settings)
    seeds, widths = list(range(4 if quick else 32)), (1, 4) if quick else (1, 2, 4)
    work = [partial(rows_of, cfg, name, steps, widths=widths, seeds=seeds) for cfg, name, steps in chosen]
    return [row for rows in side_by_side(work) for row in rows]


def rows_of(
    cfg: float, name: str, steps: int, *, widths: tuple[int, ...], seeds: list[int]
) -> list[dict[str, Any]]:
    """One sampler at one number of steps."""
    with torch.inference_mode():
        wide, alone = (embedded("tiny/flow", cfg, batch=batch) for batch in (True, False))
        return [
            row
            for k in widths
            if k > 1 or name in SMOOTH
            for row in _rows(wide if k > 1 else alone, name, steps, k, seeds)
        ]


def _rows(subject: Subject, name: str, steps: int, k: int, seeds: list[int]) -> Iterator[dict[str, Any]]:
    import comfy.samplers

    inner, sigmas = comfy.samplers.sampler_object(name), subject.sigmas(name, steps, "simple")
    every, singly = one_by_one(subject, inner, sigmas, seeds), [[seed] for seed in seeds]

    def row(mode: str, rounds: float, calls: float, result: Tensor) -> dict[str, Any]:
        setting = {"model": subject.name, "sampler": name, "schedule": "simple", "steps": steps, "width": k}
        made = {"mode": mode, "rounds": rounds, "model_calls": calls}
        return {**setting, **made, **spread_of(relative_rms(result, every)), **seen(subject, result, every)}

    width = k if k > 1 else 0
    rounds, calls, result, _ = drafted(subject, inner, "verified", width, "extrapolated", sigmas, singly)
    yield row("verified", rounds, calls, result)
    if name in SMOOTH:
        fewer = max(1, round(calls if k == 1 else rounds))
        plain = one_by_one(subject, inner, subject.sigmas(name, fewer, "simple"), seeds)
        yield row("fewer steps", fewer, fewer, plain)
    if k > 1:
        rounds, calls, result, _ = drafted(subject, inner, "aggressive", k, "frozen", sigmas, singly)
        yield row("frozen (DRiffusion)", rounds, calls, result)


def seen(subject: Subject, result: Tensor, every: Tensor) -> dict[str, float]:
    """How the decoded pictures differ."""
    assert subject.decode is not None
    pictures = [subject.decode(latents) for latents in (result, every)]
    found = sorted(psnr(*pictures).clamp(max=100).tolist())
    return {
        "psnr_median": statistics.median(found),
        "psnr_p5": found[int(0.05 * (len(found) - 1) + 0.5)],
        "ssim_median": statistics.median(ssim(*pictures).tolist()),
    }
