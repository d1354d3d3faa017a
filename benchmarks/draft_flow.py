# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine on the embedded flow model, a transformer of Flux's layout, as such models are sampled: core's
``simple`` sigmas: the student with its guidance as an input, the teacher with CFG and without.

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
from .draft_refine import STOCHASTIC, drafted, one_by_one, side_by_side, spread_of

SAMPLERS = ("euler", "dpmpp_2m", "euler_ancestral")
TEACHER, STUDENT = "tiny/flow", "tiny/flow/student"
SETTINGS = (
    (STUDENT, 1.0, 28),
    (STUDENT, 1.0, 50),
    (TEACHER, 2.0, 28),
    (TEACHER, 2.0, 50),
    (TEACHER, 1.0, 28),
)
"""Model, CFG and steps. The student takes a guidance of 4 as an input, as Flux does."""
QUICK = (SETTINGS[0], SETTINGS[2])
WIDTHS = (2, 4)


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: Euler, 28 steps, student and teacher at CFG 2, 4 seeds."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    chosen = itertools.product(SAMPLERS[:1], QUICK) if quick else itertools.product(SAMPLERS, SETTINGS)
    seeds = list(range(4 if quick else 32))
    work = [partial(rows_of, name, model, cfg, steps, seeds) for name, (model, cfg, steps) in chosen]
    return [row for rows in side_by_side(work) for row in rows]


def rows_of(name: str, model: str, cfg: float, steps: int, seeds: list[int]) -> list[dict[str, Any]]:
    """One sampler on one model at one number of steps."""
    with torch.inference_mode():
        return list(_rows(embedded(model, cfg), name, steps, seeds))


def _rows(subject: Subject, name: str, steps: int, seeds: list[int]) -> Iterator[dict[str, Any]]:
    import comfy.samplers

    inner, sigmas = comfy.samplers.sampler_object(name), subject.sigmas(name, steps, "simple")
    every, singly = one_by_one(subject, inner, sigmas, seeds), [[seed] for seed in seeds]

    def row(mode: str, k: int, rounds: float, calls: float, result: Tensor) -> dict[str, Any]:
        setting = {"model": subject.name, "sampler": name, "schedule": "simple", "steps": steps, "width": k}
        made = {"mode": mode, "rounds": rounds, "model_calls": calls}
        return {**setting, **made, **spread_of(relative_rms(result, every)), **seen(subject, result, every)}

    for k in WIDTHS:
        rounds, calls, result, _ = drafted(subject, inner, "verified", k, "extrapolated", sigmas, singly)
        yield row("verified", k, rounds, calls, result)
        if name not in STOCHASTIC:
            fewer = round(rounds)
            plain = one_by_one(subject, inner, subject.sigmas(name, fewer, "simple"), seeds)
            yield row("fewer steps", k, fewer, fewer, plain)
        rounds, calls, result, _ = drafted(subject, inner, "aggressive", k, "frozen", sigmas, singly)
        yield row("frozen (DRiffusion)", k, rounds, calls, result)


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
