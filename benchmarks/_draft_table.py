# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of ``draft_refine`` as a table to read, with what they say in sum."""

from __future__ import annotations

import math
from typing import Any

Rows = list[dict[str, Any]]
SETTING = ("model", "sampler", "schedule", "steps", "width")
COLUMNS = {
    "frozen (DRiffusion)": ("aggressive", "frozen"),
    "extrapolated": ("aggressive", "extrapolated"),
    "verified": ("verified", "extrapolated"),
    "fewer steps": ("fewer steps", "none"),
    "ParaStep": ("ParaStep", "none"),
    "ParaDiGMS 0.1": ("ParaDiGMS 0.1", "none"),
    "ParaDiGMS 0.01": ("ParaDiGMS 0.01", "none"),
}


def table(rows: Rows) -> str:
    """Markdown: rounds / median deviation in every setting, then summaries."""
    measured = [row for row in rows if "deviation_median" in row and row["mode"] != "sequential"]
    settings = list(
        dict.fromkeys(tuple(row[key] for key in SETTING) for row in measured if row["mode"] == "aggressive")
    )
    lines = [
        "Rounds / median deviation from the sequential result.",
        "",
        f"| {' | '.join((*SETTING, *COLUMNS))} |",
        "|---" * (len(SETTING) + len(COLUMNS)) + "|",
    ]
    for setting in settings:
        cells = [cell(of(measured, setting, *kind)) for kind in COLUMNS.values()]
        lines.append(f"| {' | '.join((*map(str, setting), *cells))} |")
    return "\n".join([*lines, "", *summary(measured, settings), *clock(rows)]) + "\n"


def of(rows: Rows, setting: tuple, mode: str, drafts: str) -> dict[str, Any] | None:
    """The row of a setting; fewer steps have a width of their own: what a round of this width buys."""
    wanted = dict(zip(SETTING, setting, strict=True))
    if mode == "fewer steps":
        wanted["for_width"] = wanted.pop("width")
    return next(
        (
            r
            for r in rows
            if (r["mode"], r["drafts"]) == (mode, drafts) and all(r.get(k) == v for k, v in wanted.items())
        ),
        None,
    )


def cell(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{row['rounds']:.3g} / {row['deviation_median']:.1e}"


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: Rows, settings: list[tuple]) -> list[str]:
    """Extrapolated against frozen drafts, and verified runs against fewer steps, by kind of model."""
    lines = []
    for kind, chosen in {
        "mixtures": lambda m: m.startswith("mixture"),
        "embedded networks": lambda m: not m.startswith("mixture"),
    }.items():
        ratios, closer = [], []
        for setting in settings:
            model, sampler, _, _, width = setting
            frozen, ours, fewer = (
                of(rows, setting, *COLUMNS[name])
                for name in ("frozen (DRiffusion)", "extrapolated", "fewer steps")
            )
            if (
                chosen(model)
                and sampler in ("euler", "dpmpp_2m")
                and width in (2, 4)
                and frozen
                and ours
                and fewer
            ):
                ratios.append(ours["deviation_median"] / frozen["deviation_median"])
                closer.append(fewer["deviation_median"] / ours["deviation_median"])
        if ratios:
            lines.append(
                f"- {kind}, euler and dpmpp_2m, width 2 and 4: extrapolated over frozen deviation, "
                f"geometric mean "
                f"{geometric_mean(ratios):.2f}, worst {max(ratios):.2f}; as many rounds spent on fewer "
                f"steps deviate "
                f"{geometric_mean(closer):.0f} times as much (least {min(closer):.1f})."
            )
    return lines


def clock(rows: Rows) -> list[str]:
    lines = []
    for row in rows:
        what = (
            f"- {row['model']}, {row['sampler']}, {row['steps']} steps, {row['mode']}, width {row['width']}: "
        )
        if "speed_up" in row:
            lines.append(
                f"{what}{row['speed_up']:.2f} times as fast on two CPU devices as on one, {row['rounds']} "
                f"rounds."
            )
        if "overhead_share" in row:
            lines.append(
                f"{what}{100 * row['overhead_share']:.1f} % of a sequential run spent beside the network "
                f"(a call takes {1000 * row['call_s']:.0f} ms)."
            )
        if "prompt_accuracy" in row:
            lines.append(
                f"{what}{row['prompt_accuracy']:.1f} % of {row['captions']} captions shown, sequentially "
                f"{row['sequential_prompt_accuracy']:.1f} %, {row['rounds']:.1f} rounds."
            )
    return lines
