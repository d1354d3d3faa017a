# SPDX-License-Identifier: GPL-3.0-or-later
"""Every sampler of ComfyUI with verified drafts at the node's default tolerance: rounds and deviation, or why
it is not drafted.
"""

from __future__ import annotations

import logging
import statistics
from pathlib import Path
from typing import Any

import torch

from ._draft_subjects import Subject, subjects
from ._parallel_peers import relative_rms
from .draft_refine import TOLERANCE

ROOT = Path(__file__).resolve().parents[1]
STEPS, WIDTH = 28, 4


class Reasons(logging.Handler):
    """Keeps what is said of samplers that are not drafted."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage().split("undrafted: ")[-1])


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a sampler and model: means of rounds, median and largest deviation over seeds."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    import comfy.samplers

    torch.set_num_threads(1)
    reasons = Reasons()
    logging.getLogger("dizzydiff").addHandler(reasons)
    with torch.inference_mode():
        models = [subject for subject in subjects(teacher=False) if subject.name != "mixture B"]
        return [
            measure(subject, name, 4 if quick else 16, reasons)
            for subject in models
            for name in comfy.samplers.SAMPLER_NAMES
        ]


def measure(subject: Subject, name: str, seeds: int, reasons: Reasons) -> dict[str, Any]:
    import comfy.samplers

    from ..drafting.report import Report
    from ..drafting.sampler import DraftRefine, Settings

    inner, sigmas = comfy.samplers.sampler_object(name), subject.sigmas(name, STEPS, "karras")
    reports: list[Report] = []
    sampler = DraftRefine(inner, Settings("verified", WIDTH, TOLERANCE), on_report=reports.append)
    reasons.said.clear()
    off: list[float] = []
    for seed in range(seeds):
        off += relative_rms(subject.sample(sampler, sigmas, [seed]), subject.sample(inner, sigmas, [seed]))
        if not reports:
            return {"model": subject.name, "sampler": name, "drafted": False, "why": reasons.said[-1]}
    answered = [
        sum(
            state.accepted is not False and (i == 0 or state.accepted is not None)
            for states in report.rounds
            for i, state in enumerate(states)
        )
        for report in reports
    ]
    return {
        "model": subject.name,
        "sampler": name,
        "drafted": True,
        "predictions": answered[0],
        "rounds": statistics.mean(len(report.rounds) for report in reports),
        "deviation_median": statistics.median(off),
        "deviation_max": max(off),
    }
