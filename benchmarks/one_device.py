# SPDX-License-Identifier: GPL-3.0-or-later
"""One device, with model calls skipped, beside the same sampler with every call, with as few steps, and with
core's step caches at several thresholds.

A row is one setting: model calls (mean over seeds), and the deviation from the sequential result with as many
steps, RMS distance over RMS (median, 95th percentile).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._caches import CACHES, THRESHOLDS, cached
from ._draft_subjects import ROOT, Subject, embedded, subjects
from ._parallel_peers import relative_rms
from .draft_refine import drafted, one_by_one, spread_of

SAMPLERS = ("euler", "dpmpp_2m")
FLOW_CFG = 2.0
CACHED = {"tiny/teacher": ("tiny/teacher", 4.0), "tiny/flow, CFG 2": ("tiny/flow", FLOW_CFG)}
"""Subjects of which core's caches are measured: pipeline and CFG. The others are mixtures or have no CFG."""


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: Euler, 28 steps, 4 seeds."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    seeds = list(range(4 if quick else 32))
    settings = itertools.product(SAMPLERS[:1] if quick else SAMPLERS, ("karras", "simple"), (28, 50))
    rows = []
    with torch.inference_mode():
        models = [*subjects(teacher=True, batch=False), embedded("tiny/flow", FLOW_CFG, batch=False)]
        for (name, schedule, steps), subject in itertools.product(settings, models):
            if subject.name == "mixture B" or (quick and steps != 28):
                continue
            if "flow" in subject.name and schedule == "karras":
                continue
            rows += _rows(subject, name, schedule, steps, seeds)
            print(*rows[-1].values(), flush=True)
    return rows


def _rows(subject: Subject, name: str, schedule: str, steps: int, seeds: list[int]) -> list[dict[str, Any]]:
    import comfy.samplers

    inner, sigmas = comfy.samplers.sampler_object(name), subject.sigmas(name, steps, schedule)
    every, singly = one_by_one(subject, inner, sigmas, seeds), [[seed] for seed in seeds]
    _, calls, skipped, _ = drafted(subject, inner, "verified", 0, "extrapolated", sigmas, singly)
    fewer = subject.sample(inner, subject.sigmas(name, round(calls), schedule), seeds)
    common = {"model": subject.name, "sampler": name, "schedule": schedule, "steps": steps}
    return [
        {**common, "mode": mode, "model_calls": made, **spread_of(relative_rms(result, every))}
        for mode, made, result in (
            ("calls skipped", calls, skipped),
            ("fewer steps", round(calls), fewer),
            *_with_caches(subject, inner, sigmas, seeds),
        )
    ]


def _with_caches(
    subject: Subject, inner: Any, sigmas: Tensor, seeds: list[int]
) -> Iterator[tuple[str, float, Tensor]]:
    """(name, model calls, latents) of every cache and threshold, of a subject that core can cache."""
    if subject.name not in CACHED:
        return
    for kind, threshold in itertools.product(CACHES, THRESHOLDS):
        made: list[None] = []
        patched = embedded(*CACHED[subject.name], batch=False, patch=cached(kind, threshold, made))
        result = one_by_one(patched, inner, sigmas, seeds)
        yield f"{kind} {threshold:g}", len(made) / len(seeds), result
