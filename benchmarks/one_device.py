# SPDX-License-Identifier: GPL-3.0-or-later
"""One device, with calls left out, beside the same sampler with every call and with as few steps.

A row is one setting: model calls (mean over seeds), and the deviation from the sequential result with as many
steps, RMS distance over RMS (median, 95th percentile).
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch
from torch import Tensor

from ._draft_subjects import ROOT, Subject, subjects
from ._parallel_peers import relative_rms

TOLERANCE = 0.01
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
    every = torch.cat([subject.sample(inner, sigmas, [seed]) for seed in seeds])
    calls, left_out = _left_out(subject, inner, sigmas, seeds)
    fewer_steps = round(statistics.mean(calls))
    fewer = subject.sample(inner, subject.sigmas(name, fewer_steps, schedule), seeds)
    common = {"model": subject.name, "sampler": name, "schedule": schedule, "steps": steps}
    return [
        {**common, "mode": mode, "model_calls": made, "median": spread[0], "p95": spread[1]}
        for mode, made, spread in (
            ("calls left out", statistics.mean(calls), _spread(left_out, every)),
            ("fewer steps", fewer_steps, _spread(fewer, every)),
        )
    ]


def _left_out(subject: Subject, inner: Any, sigmas: Tensor, seeds: list[int]) -> tuple[list[int], Tensor]:
    """Model calls of each seed, and the latents."""
    from ..drafting.report import Report
    from ..drafting.sampler import DraftRefine, Settings

    reports: list[Report] = []
    sampler = DraftRefine(inner, Settings(tolerance=TOLERANCE), on_report=reports.append)
    result = torch.cat([subject.sample(sampler, sigmas, [seed]) for seed in seeds])
    return [report.evaluations for report in reports], result


def _spread(result: Tensor, reference: Tensor) -> tuple[float, float]:
    """Median and 95th percentile of the deviation."""
    off = sorted(relative_rms(result, reference))
    return statistics.median(off), off[round(0.95 * (len(off) - 1))]
