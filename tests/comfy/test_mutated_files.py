# SPDX-License-Identifier: GPL-3.0-or-later
"""Files damaged at random, in short; ``dev.py bench mutated_files`` tries thousands."""

from __future__ import annotations

from pathlib import Path

from dizzydiff.benchmarks import mutated_files

FILES = 45


def test_damaged_files_are_refused_by_name_or_sampled(tmp_path: Path) -> None:
    subjects = mutated_files.make_subjects(tmp_path / "whole")
    mutated_files.warm_up(subjects)
    rows = mutated_files.tried(subjects, FILES, tmp_path / "copy")
    assert sum(row.get("files", 0) for row in rows) == FILES
    failed = [row for row in rows if "failed" in row and not row["failed"].startswith(mutated_files.SLOW)]
    assert not failed
