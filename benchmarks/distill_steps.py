# SPDX-License-Identifier: GPL-3.0-or-later
"""Which steps of a student of few steps lose its captions: accuracy at g = 4 where the first of its steps are
its own and the others those of stage one's student, each in several finer ones, and the other way round.
Beside it, how much its pictures differ. A short training, with a half of the batch of ``distill``: not its
students.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .distill import DIVERSE_SCALE as SCALE
from .distill import FULL, QUICK, ROOT, Subject, diversity, trained

FINE = 16
"""Steps of stage one's student from noise to picture."""
SHORT = replace(FULL, updates=500, step_updates=100, batch=16, captions=150, seeds=24)


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of kinds "steps" (one a student and number of first steps) and "diversity"."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    subject = Subject(replace(QUICK, steps=4) if quick else SHORT)
    students = trained(subject)
    return [
        *(
            divided(subject, students[0], student, 8 >> i, own)
            for i, student in enumerate(students[1:])
            if 8 >> i <= 4
            for own in range((8 >> i) + 1)
        ),
        *diversity(subject, students),
    ]


def divided(subject: Subject, fine: Any, student: Any, steps: int, own: int) -> dict[str, Any]:
    """Percent of captions where the first ``own`` steps of ``steps`` are the student's, and where the others
    are.
    """
    coarse, fine_levels = subject.levels(steps), subject.levels(FINE)
    border = own * (FINE // steps)
    return {
        "kind": "steps",
        "steps": steps,
        "first": own,
        "g": SCALE,
        "student_first": accuracy(subject, [(student, coarse[: own + 1]), (fine, fine_levels[border:])]),
        "student_last": accuracy(subject, [(fine, fine_levels[: border + 1]), (student, coarse[own:])]),
    }


def accuracy(subject: Subject, parts: list[tuple[Any, Tensor]]) -> float:
    """Of pictures that each MODEL takes on from where the one before it came to. A part of one sigma has no
    step.
    """
    noise, latents = subject.noise, torch.zeros_like(subject.noise)
    for model, sigmas in parts:
        if len(sigmas) > 1:
            latents = subject.walked(model, SCALE, 1.0, sigmas, noise, subject.context, latents)
            noise = torch.zeros_like(noise)
    return subject.accuracy(latents)


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| steps | of which first, or last | the first are the student's | the last are |",
        "|---|---|---|---|",
    ]
    for steps, those in itertools.groupby((r for r in rows if r["kind"] == "steps"), lambda r: r["steps"]):
        by_first = {row["first"]: row for row in those}
        lines += [
            f"| {steps} | {n} | {row['student_first']:.0f} | {by_first[steps - n]['student_last']:.0f} |"
            for n, row in by_first.items()
        ]
    lines += ["", "| | spread of places, pixels | of sizes | pictures with one thing |", "|---|---|---|---|"]
    lines += [
        f"| {r['who']}, {r['steps']} steps | {r['place_px']:.1f} | {r['size_px']:.1f} | {r['pictures']} |"
        for r in rows
        if r["kind"] == "diversity"
    ]
    return "\n".join(lines) + "\n"
