# SPDX-License-Identifier: GPL-3.0-or-later
"""Expected speed-up of draft-refine on 1 to 64 devices: computed by a model, and compared with what was
measured.

Rows with ``kind`` "computed" are the model's: where every draft is used, and where as many are as verified
drafts of the embedded teacher (``draft_refine.json``). Call times come from ``gpu.json`` where that exists
("measured"); else they are assumed. Links are nominal, but for those that ``bench cluster`` measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..drafting.allotment import SKIPPING, VERIFIED_USE, allot, calls_a_round
from ..drafting.policies import Policy
from ._scaling_drawn import DEVICES, picture, table

__all__ = ["picture", "run", "table"]

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Link:
    """How devices are joined: bytes a second, seconds a message, and whether one host launches for all of
    them; then each state brings its conditioning, which workers make by themselves.
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


def verified_rounds(n: int, steps: int, use: float) -> float:
    """The same of verified drafts, on the average. use: share of those one call ahead that are used."""
    return 1 + (steps - 1) / calls_a_round(n, use)


def use_of(steps: int) -> float:
    """The share by which four predictions a round make the rounds of the embedded teacher."""
    wanted = {"model": "tiny/teacher", "sampler": "euler", "schedule": "karras", "steps": steps, "width": 4}
    wanted |= {"mode": "verified", "drafts": "extrapolated"}
    rows = json.loads((RESULTS / "draft_refine.json").read_text(encoding="utf-8"))["rows"]
    (measured,) = {row["rounds"] for row in rows if wanted.items() <= row.items() and "seeds" in row}
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if verified_rounds(4, steps, middle) > measured else (low, middle)
    return low


def round_s(n: int, load: Load, link: Link) -> float:
    """A round of n states: they go out one after the other, are evaluated side by side, and come back one
    after the other.
    """
    launches = load.launch_s * (n if link.one_host else 1)
    sent = load.state_bytes + load.conditioning_bytes * link.one_host
    messages = (n - 1) * (2 * link.latency + (sent + load.state_bytes) / link.bandwidth)
    return max(load.call_s, launches) + messages + (n - 1) * load.draft_s


def speed_up(n: int, steps: int, load: Load, link: Link, use: float = 1.0) -> float:
    """Over the same sampler on one device. use: see :func:`verified_rounds`; 1 is the most that drafts can
    give. The first round has one state.
    """
    states = min(n, steps - 1)
    made = rounds(n, steps) if use >= 1 else verified_rounds(states, steps, use)
    drafted_s = round_s(1, load, link) + (made - 1) * round_s(states, load, link)
    return steps * load.call_s / drafted_s


def of_unequal(speeds: Sequence[float], steps: int) -> float:
    """The same of verified drafts on devices of these speeds, by their allotment: over the fastest alone,
    with links and launches for nothing.
    """
    plan = allot(speeds, use=VERIFIED_USE, far=True)
    skipping = 1.0 if len(speeds) > 1 == len(set(speeds)) else SKIPPING
    return steps / (1 + (steps - 1) / (plan.gain * skipping))


def run(quick: bool) -> list[dict[str, Any]]:
    return [*computed(), *checked(), *unequal()]


def computed() -> Iterator[dict[str, Any]]:
    for steps in (28, 50):
        for use in (use_of(steps), 1.0):
            for load in measured_loads() or LOADS:
                for link in (*LINKS, *measured_links()):
                    yield {
                        "kind": "computed",
                        "load": load.name,
                        "call_s": load.call_s,
                        "call_time": load.source,
                        "link": link.name,
                        "steps": steps,
                        "use": use,
                        **{str(n): speed_up(n, steps, load, link, use) for n in DEVICES},
                    }


def measured_links() -> Iterator[Link]:
    """From the round trips of two sizes that ``dev.py bench cluster`` and ``cluster_links`` wrote, if they
    did: what comes and goes, with Ray's own time.
    """
    trips: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(RESULTS.glob("cluster*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if "link" in row:
                trips.setdefault(row["link"], []).append((row["bytes"], row["least ms"] / 1000))
    for name, points in trips.items():
        (few, soon), *_, (many, late) = sorted(points)
        bandwidth = 2 * (many - few) / (late - soon)
        yield Link(f"Ray, {name}, measured", bandwidth, max(soon / 2 - few / bandwidth, 0.0), False)


def unequal() -> Iterator[dict[str, Any]]:
    """What was measured by simulated clock (``dev.py bench devices``), beside what the model computes."""
    rows = json.loads((RESULTS / "devices.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if "far_drafts" in row:
            speeds = [float(speed) for speed in row["speeds"].split(",")]
            yield {
                "kind": "unequal",
                "load": f"{row['model']}, {row['schedule']}",
                "speeds": row["speeds"],
                "measured": row["times_as_fast"],
                "computed": of_unequal(speeds, 28),
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
