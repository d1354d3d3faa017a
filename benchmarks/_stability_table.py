# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of the stability benchmark as two tables: a line a grid over all rows, and a line a model, solver
and number of steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

SHOWN = ("dizzydiff", "sqrt curvature", "gits", "align your steps", "beta", "karras", "simple")
"""Grids of the second table, beside the best of ComfyUI's."""
CORE = "best of ComfyUI"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    summary = [row for row in rows if row["model"] == "all"]
    lines = table_of(
        ("grid", "rel. MSE", "held out", "worst to ComfyUI's best", "rows more than 10 % above it", "calls"),
        (
            (
                row["grid"],
                number(row["rel_mse"]),
                number(row.get("rel_mse_held_out")),
                f"{row['worst_to_best_of_core']:.2f}",
                f"{row['rows_above_best_of_core']} of {row['rows']}",
                str(row["calibration_calls"]),
            )
            for row in summary
        ),
    )
    settings: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["model"] != "all":
            settings[row["model"], row["solver"], row["steps"]][row["grid"]] = row
    core = next(row["core"] for row in summary)
    return "\n".join(
        [
            "Geometric means over all models and solvers at 6 to 12 steps:",
            "",
            *lines,
            "",
            "Relative MSE and, in brackets, the share of images in another mode or the share of pictures "
            "that show their caption, in per cent:",
            "",
            *table_of(
                ("model", "solver", "steps", *SHOWN, CORE),
                (setting(key, grids, core) for key, grids in settings.items()),
            ),
            "",
        ]
    )


def setting(key: tuple[str, str, int], grids: dict[str, dict[str, Any]], core: Sequence[str]) -> list[str]:
    best = min((grids[name] for name in core), key=lambda row: row["rel_mse"])
    return [
        key[0],
        key[1],
        str(key[2]),
        *(cell(grids.get(name)) for name in SHOWN),
        f"{cell(best)} {best['grid']}",
    ]


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    share = 100 * row["wrong_mode_share"] if "wrong_mode_share" in row else row["prompt_accuracy"]
    return f"{number(row['rel_mse'])} ({share:.1f})"


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if value < 0.001 else f"{value:.4f}"


def table_of(head: Sequence[str], body: Any) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]
