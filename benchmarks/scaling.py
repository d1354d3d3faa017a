# SPDX-License-Identifier: GPL-3.0-or-later
"""Expected speed-up of draft-refine on 1 to 64 devices: computed by a model, and compared with what was
measured.

Rows with ``kind`` "computed" are the model's. Call times come from ``benchmarks/results/gpu.json`` where that
exists ("measured"); else they are assumed. Bandwidths and latencies of links are nominal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..drafting.policies import Policy

RESULTS = Path(__file__).resolve().parent / "results"
DEVICES = (1, 2, 4, 8, 16, 32, 64)
COLOURS = ("#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#8c564b")


@dataclass(frozen=True)
class Link:
    """How devices are joined: bytes a second, seconds a message, and whether one host launches for all of
    them.
    """

    name: str
    bandwidth: float
    latency: float
    one_host: bool


@dataclass(frozen=True)
class Load:
    """One network at one size."""

    name: str
    call_s: float
    """A call on one device, launch included."""
    launch_s: float
    """Of which the host's interpreter is busy; hosts of several devices do this for one device after the
    other.
    """
    state_bytes: float
    """A state, or a prediction."""
    conditioning_bytes: float
    draft_s: float = 0.0
    """Bookkeeping for every state of a round."""
    source: str = "assumed"


LINKS = (
    Link("NVLink", 200e9, 10e-6, True),
    Link("PCIe 4.0 x16", 20e9, 20e-6, True),
    Link("Ethernet, 10 Gb/s", 1.1e9, 100e-6, False),
)
LOADS = (
    Load("SDXL, 1024 px", 60e-3, 15e-3, 4 * 4 * 128 * 128, 2 * 77 * 2048),
    Load("Flux, 1024 px", 300e-3, 15e-3, 4 * 16 * 128 * 128, 2 * 512 * 4096),
    Load("video, 16x21x90x160", 5.0, 20e-3, 4 * 16 * 21 * 90 * 160, 2 * 512 * 4096),
)


def rounds(n: int, steps: int) -> int:
    """Of the aggressive policy with a state a device: 1 + ceil((N - 1) / n)."""
    policy, done, answered = Policy("aggressive", n), 0, 0
    while answered < steps:
        answered, done = answered + policy.width(done, steps - answered), done + 1
    return done


def round_s(n: int, load: Load, link: Link) -> float:
    """A round of n states: they go out one after the other, are evaluated side by side, and come back one
    after the other.
    """
    launches = load.launch_s * (n if link.one_host else 1)
    sent = load.state_bytes + load.conditioning_bytes
    messages = (n - 1) * (2 * link.latency + (sent + load.state_bytes) / link.bandwidth)
    return max(load.call_s, launches) + messages + (n - 1) * load.draft_s


def speed_up(n: int, steps: int, load: Load, link: Link) -> float:
    """Over the same sampler on one device: the most that drafts can give, as verifying adds rounds. The first
    round has one state.
    """
    states = min(n, steps - 1)
    drafted_s = round_s(1, load, link) + (rounds(n, steps) - 1) * round_s(states, load, link)
    return steps * load.call_s / drafted_s


def run(quick: bool) -> list[dict[str, Any]]:
    return [*computed(), *checked()]


def computed() -> Iterator[dict[str, Any]]:
    for load in measured_loads() or LOADS:
        for link in LINKS:
            for steps in (28, 50):
                yield {
                    "kind": "computed",
                    "load": load.name,
                    "call_s": load.call_s,
                    "call_time": load.source,
                    "link": link.name,
                    "steps": steps,
                    **{str(n): speed_up(n, steps, load, link) for n in DEVICES},
                }


def measured_loads() -> list[Load]:
    """From the rows that ``dev.py bench gpu`` wrote, if it did."""
    path = RESULTS / "gpu.json"
    if not path.is_file():
        return []
    rows = [
        row
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        if row["part"] == "launches" and "launch_s" in row
    ]
    return [
        Load(
            f"{row['network']}, {row['pixels']} px",
            row["wall_s"],
            row["launch_s"],
            row["latent_bytes"],
            row["conditioning_bytes"],
            source=f"measured on {row['device']}",
        )
        for row in rows
    ]


def checked() -> Iterator[dict[str, Any]]:
    """The model beside the wall clock of two CPU devices, whose link is memory and whose threads launch side
    by side.
    """
    rows = json.loads((RESULTS / "draft_refine_quick.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if "speed_up" in row:
            load = Load(
                row["model"],
                row["sequential_wall_s"] / row["steps"],
                0.0,
                4 * 4 * 48 * 48,
                0.0,
                source="measured",
            )
            link = Link("memory", math.inf, 0.0, False)
            yield {
                "kind": "measured",
                "load": load.name,
                "call_s": load.call_s,
                "steps": row["steps"],
                "devices": row["width"],
                "measured": row["speed_up"],
                "computed": speed_up(row["width"], row["steps"], load, link),
            }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as two tables in Markdown."""
    lines = [
        "Computed: speed-up over one device, every draft used.",
        "",
        f"| load | call | link | steps | {' | '.join(map(str, DEVICES))} |",
        f"|{'---|' * (4 + len(DEVICES))}",
    ]
    for row in rows:
        if row["kind"] == "computed":
            gains = " | ".join(f"{row[str(n)]:.1f}" for n in DEVICES)
            call = f"{1000 * row['call_s']:.0f} ms, {row['call_time']}"
            lines.append(f"| {row['load']} | {call} | {row['link']} | {row['steps']} | {gains} |")
    lines += [
        "",
        "Measured, beside what the model computes for it.",
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
    return "\n".join(lines) + "\n"


def picture(rows: list[dict[str, Any]]) -> Image.Image:
    """Speed-up over devices, both on log axes, 50 steps: a panel a link, a line a load; measured points as
    circles in every panel.
    """
    size, gap, links = 300, 60, list(dict.fromkeys(row["link"] for row in rows if row["kind"] == "computed"))
    image = Image.new("RGB", (gap + len(links) * (size + gap), size + 3 * gap), "white")
    draw = ImageDraw.Draw(image)
    draw.text(
        (gap, 8),
        "Draft-refine, 50 steps, every draft used. Lines: computed. Circles: measured (CPU devices).",
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
        draw.line([at(n, 50 / rounds(n, 50)) for n in DEVICES], "lightgrey", 3)
        of_link = [row for row in rows if row.get("link") == link and row["steps"] == 50]
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
        "Across: devices. Up: speed-up. Grey: the rounds' limit, links and launches for nothing.",
        "black",
    )
    return image
