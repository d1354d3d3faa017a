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
    from ..students.distill.run import distill
    from ..students.distill.several import distill_several
    from ..students.student_model import student_of, students_of

    effort, updates, step_updates = (QUICK, 10, 3) if quick else (FULL, 200, 60)
    subject = Subject(effort)

    def job(file: Path, rank: int) -> Any:
        return subject.job(file, updates=updates, rank=rank, steps=1, step_updates=step_updates)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "students.safetensors"
        alone = distill(job(Path(folder) / "one.safetensors", RANK))
        one = student_of(subject.teacher, alone.adapter, "student")
        manifest, _ = distill_several(job(path, RANK // 2), SHARING)
        four = students_of(subject.teacher, manifest, "students")
        return [
            {
                "g": g,
                "steps": 1,
                "one_student": subject.accuracy(subject.sampled(one, g, 1.0, 1)),
                "four_students": subject.accuracy(subject.sampled(four, g, 1.0, 1)),
            }
            for g in SCALES
        ]
