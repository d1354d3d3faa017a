# SPDX-License-Identifier: GPL-3.0-or-later
"""Peak memory of distilling, with CFG and by a guider of four passes, beside that of sampling the teacher
with CFG, same batch, weights included: the bar is 1.6 times.

A UNet of SD1.5's layout at half its width with random weights. Each side runs in a process of its own; what
the process held before the model was loaded is taken off. On a GPU it is the device's memory, on a CPU the
process's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a size of latent and batch: bytes of both sides, with and without gradient checkpointing, and
    their ratios.
    """
    from .student_step import save_narrow_sd15

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _, teacher = save_narrow_sd15(Path(folder))
        for size, batch in ((32, 1),) if quick else ((32, 1), (32, 4), (64, 2)):
            taken = {
                what: peak(what, teacher, size, batch)
                for what in (
                    "sampling",
                    "distilling",
                    "distilling, nothing recomputed",
                    "distilling by a guider",
                )
            }
            rows.append(
                {
                    "network": "narrow SD1.5",
                    "latent": size,
                    "batch": batch,
                    **{f"{what} MB": round(value / 1e6) for what, value in taken.items()},
                    "ratio": taken["distilling"] / taken["sampling"],
                    "guider_ratio": taken["distilling by a guider"] / taken["sampling"],
                }
            )
    return rows


def peak(what: str, teacher: Path, size: int, batch: int) -> int:
    """Bytes, in a new process."""
    command = [
        sys.executable,
        "-P",
        str(ROOT / "benchmarks" / "_peak_of.py"),
        what,
        str(teacher),
        str(size),
        str(batch),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{what}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
