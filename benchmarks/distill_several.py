# SPDX-License-Identifier: GPL-3.0-or-later
"""One student in one step beside four of half its rank that share the prompts: accuracy on the embedded
teacher by the reader, percent.

All are trained in the same number of updates, far fewer than in ``distill``. The bar: four are at least as
good as one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .distill import FULL, QUICK, ROOT, SCALES, Subject

SHARING, RANK = 4, 16


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a g."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    from ..students.distill import native, routing, several
    from ..students.distill.run import distil

    effort, updates, step_updates = (QUICK, 10, 3) if quick else (FULL, 200, 60)
    subject = Subject(effort)

    def job(file: Path, rank: int) -> Any:
        return subject.job(file, updates=updates, rank=rank, steps=1, step_updates=step_updates)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "students.safetensors"
        one = native.student_of(
            subject.teacher, distil(job(Path(folder) / "one.safetensors", RANK)).adapter, "student"
        )
        manifest, _ = several.distil_several(job(path, RANK // 2), SHARING)
        four = routing.students_of(subject.teacher, manifest, several.loader(path, manifest), "students")
        return [
            {
                "g": g,
                "steps": 1,
                "one_student": subject.accuracy(subject.sampled(one, g, 1.0, 1)),
                "four_students": subject.accuracy(subject.sampled(four, g, 1.0, 1)),
            }
            for g in SCALES
        ]
