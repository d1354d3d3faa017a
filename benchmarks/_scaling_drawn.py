# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of ``bench scaling`` as tables and as a picture."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image, ImageDraw

DEVICES = (1, 2, 4, 8, 16, 32, 64)
COLOURS = ("#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#8c564b")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as tables in Markdown."""
    lines = []
    computed_rows = [row for row in rows if row["kind"] == "computed"]
    shares = ((False, "verified drafts, used as the embedded teacher's are"), (True, "every draft used"))
    for used, said in shares:
        lines += [
            f"Computed: speed-up over one device, {said}.",
            "",
            f"| load | call | link | steps | {' | '.join(map(str, DEVICES))} |",
            f"|{'---|' * (4 + len(DEVICES))}",
        ]
        for row in computed_rows:
            if (row["use"] >= 1) == used:
                gains = " | ".join(f"{row[str(n)]:.1f}" for n in DEVICES)
                call = f"{1000 * row['call_s']:.0f} ms, {row['call_time']}"
                lines.append(f"| {row['load']} | {call} | {row['link']} | {row['steps']} | {gains} |")
        lines.append("")
    lines += [
        "Measured, beside what the model computes for it where every draft is used.",
        "",
        "| load | steps | devices | measured | computed |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['load']} | {row['steps']} | {row['devices']} | {row['measured']:.2f} | "
        f"{row['computed']:.2f} |"
        for row in rows
        if row["kind"] == "measured"
    ]
    lines += [
        "",
        "Devices of unequal speed, 28 steps, verified: by simulated clock, beside the model.",
        "",
        "| load | speeds | by simulated clock | computed |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['load']} | {row['speeds']} | {row['measured']:.2f} | {row['computed']:.2f} |"
        for row in rows
        if row["kind"] == "unequal"
    ]
    return "\n".join(lines) + "\n"


def picture(rows: list[dict[str, Any]]) -> Image.Image:
    """Speed-up over devices, both on log axes, 50 steps: a panel a link, a line a load; measured points as
    circles in every panel.
    """
    drawn = [row for row in rows if row["kind"] == "computed" and row["steps"] == 50 and row["use"] < 1]
    size, gap, links = 300, 60, list(dict.fromkeys(row["link"] for row in drawn))
    image = Image.new("RGB", (gap + len(links) * (size + gap), size + 3 * gap), "white")
    draw = ImageDraw.Draw(image)
    draw.text(
        (gap, 8),
        "Draft-refine, 50 steps, drafts used as the embedded teacher's. Lines: computed. Circles: measured "
        "(CPU devices).",
        "black",
    )
    for panel, link in enumerate(links):
        left, bottom = gap + panel * (size + gap), gap + size

        def at(n: float, gain: float, left: int = left, bottom: int = bottom) -> tuple[float, float]:
            return left + size * math.log2(n) / 6, bottom - size * math.log2(max(gain, 1)) / 6

        draw.rectangle((left, gap, left + size, bottom), outline="grey")
        draw.text((left, gap - 16), link, "black")
        for n in DEVICES:
            draw.text((at(n, 1)[0] - 5, bottom + 4), str(n), "black")
            draw.text((left - 18, at(1, n)[1] - 6), str(n), "black")
        draw.line([at(n, 50 / (1 + math.ceil(49 / n))) for n in DEVICES], "lightgrey", 3)
        of_link = [row for row in drawn if row["link"] == link]
        for line, (row, colour) in enumerate(zip(of_link, COLOURS, strict=False)):
            draw.line([at(n, row[str(n)]) for n in DEVICES], colour, 2)
            draw.text(
                (left, bottom + 24 + 14 * line),
                f"{row['load']}, call {1000 * row['call_s']:.0f} ms ({row['call_time']})",
                colour,
            )
        for row in rows:
            if row["kind"] == "measured":
                x, y = at(row["devices"], row["measured"])
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), outline="black", width=2)
    draw.text(
        (gap, image.height - 40),
        "Across: devices. Up: speed-up. Grey: every draft used, links and launches for nothing.",
        "black",
    )
    return image
