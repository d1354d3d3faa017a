# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts from files: a text with one a line, or a table."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from .errors import UnreadablePrompts

COLUMNS = ("prompt", "caption", "text")
"""Of a table, by its first row; without one of them, the first column is read, first row included."""
LARGEST = 64 * 2**20
"""Bytes."""


def lines_of(text: str) -> list[str]:
    """One prompt a line; empty lines do not count."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a .txt or .csv. Raises UnreadablePrompts."""
    if path.suffix.lower() not in (".txt", ".csv"):
        raise UnreadablePrompts(
            f"{path.name}: not a kind of file that prompts are read from. Expected .txt with one prompt a "
            "line, or .csv."
        )
    try:
        if path.stat().st_size > LARGEST:
            raise UnreadablePrompts(
                f"{path.name}: larger than {LARGEST >> 20} MiB. Expected prompts: split it."
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UnreadablePrompts(
            f"{path.name}: could not be read ({error}). Expected a file in UTF-8 inside ComfyUI's input "
            "folder: put it there."
        ) from error
    return lines_of(text) if path.suffix.lower() == ".txt" else _column(text, path.name)


def _column(text: str, name: str) -> list[str]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise UnreadablePrompts(f"{name}: no table ({error}). Expected comma-separated values.") from error
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    found = next((head.index(name) for name in COLUMNS if name in head), None)
    column, rows = (0, rows) if found is None else (found, rows[1:])
    cells = [row[column] for row in rows if len(row) > column]
    return [" ".join(cell.split()) for cell in cells if cell.strip()]
