# SPDX-License-Identifier: GPL-3.0-or-later
"""One device, with model calls skipped, beside the same sampler with every call and with as few steps.

A row is one setting: model calls (mean over seeds), and the deviation from the sequential result with as many
steps, RMS distance over RMS (median, 95th percentile).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from ._draft_subjects import ROOT, Subject, subjects
from ._parallel_peers import relative_rms
from .draft_refine import drafted, one_by_one, spread_of

SAMPLERS = ("euler", "dpmpp_2m")


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: Euler, 28 steps, 4 seeds."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    seeds = list(range(4 if quick else 32))
    settings = itertools.product(SAMPLERS[:1] if quick else SAMPLERS, ("karras", "simple"), (28, 50))
    rows = []
    with torch.inference_mode():
        for (name, schedule, steps), subject in itertools.product(
            settings, subjects(teacher=True, batch=False)
        ):
            if subject.name == "mixture B" or (quick and steps != 28):
                continue
            rows += _rows(subject, name, schedule, steps, seeds)
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
        for mode, made, result in (("calls skipped", calls, skipped), ("fewer steps", round(calls), fewer))
    ]
