# SPDX-License-Identifier: GPL-3.0-or-later
"""Drafts on every model family of ComfyUI's list: small random networks in core's own classes.

Each row is one picture: plainly and with drafts, on one card, in a batch, on two devices. It tells whether it
was drafted or why not, how far any prediction is from the same state alone, and how far the picture is from
the plain sampler's. Rows say ``failed`` where drafts crash and plain sampling does not, or where a picture is
more than MARGIN tolerances off without a word or although nothing was drafted.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ._drafted import PLACES, Trial, attempt, plain, quiet, spread
from ._sampling import cfg_guider, levels
from .networks.subject import Subject, make

ROOT = Path(__file__).resolve().parents[1]
STEPS, TOLERANCE, MARGIN = 8, 0.01, 1.5


@dataclass(frozen=True)
class Setting:
    """How a picture is sampled."""

    sampler: str
    cfg: float
    rows: int


SETTINGS = (
    Setting("euler", 4.0, 2),
    Setting("euler_ancestral", 1.0, 1),
    Setting("dpmpp_2m", 4.0, 1),
    Setting("dpmpp_2m", 1.0, 2),
    Setting("euler", 1.0, 1),
    Setting("euler_ancestral", 4.0, 2),
)
"""Each pair of a sampler, a CFG and a number of rows with every other; the quick run takes the first two."""


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a network, setting and place."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    quiet()
    warnings.simplefilter("ignore")

    from .networks.families import NETWORKS

    rows: list[dict[str, Any]] = []
    for network in NETWORKS.values():
        started = time.perf_counter()
        subject = make(network)
        models = {place: spread(subject.model, place) for place in PLACES}
        for setting in dict.fromkeys(
            possible(subject, setting) for setting in SETTINGS[: 2 if quick else None]
        ):
            rows += measure(subject, models, setting)
        failed = sum("failed" in row for row in rows)
        print(f"{network.name}: {time.perf_counter() - started:.0f} s, {failed} failed so far", flush=True)
    return rows


def possible(subject: Subject, setting: Setting) -> Setting:
    """The setting, or the one next to it that the network has."""
    cfgs, rows = subject.network.cfgs, subject.network.rows
    return Setting(
        setting.sampler,
        setting.cfg if setting.cfg in cfgs else cfgs[0],
        setting.rows if setting.rows in rows else rows[0],
    )


def measure(subject: Subject, models: dict[str, Any], setting: Setting) -> Iterator[dict[str, Any]]:
    """A row a place."""
    import comfy.samplers

    def guider(model: Any) -> Any:
        return cfg_guider(model, subject.positive, subject.negative, setting.cfg)

    latent, sampler = subject.latent(setting.rows), comfy.samplers.sampler_object(setting.sampler)
    sigmas = levels(subject.model, setting.sampler, STEPS)
    reference, crash = plain(lambda: guider(subject.model), sampler, sigmas, latent)
    for place, model in models.items():
        row = {"family": subject.name, **asdict(setting), "place": place}
        if crash:
            yield {**row, "verdict": f"plain sampling crashes: {crash}"}
            continue
        trial = attempt(functools.partial(guider, model), sampler, sigmas, latent, reference, TOLERANCE)
        yield {**row, **judged(trial)}


def judged(trial: Trial, allowed: float = MARGIN * TOLERANCE) -> dict[str, Any]:
    """The trial as columns of a row; ``failed`` says what must not be."""
    row = asdict(trial)
    if trial.crash:
        row["failed"] = "crash"
    elif trial.silently_off(allowed):
        row["failed"] = "silently off"
    elif trial.stands_aside and trial.deviation is not None and trial.deviation > MARGIN * TOLERANCE:
        row["failed"] = "off although it stands aside"
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """A line a family: per place its verdicts, the worst row error and deviation."""
    lines = [
        f"{len({row['family'] for row in rows})} networks, {len(rows)} pictures, "
        f"{sum('failed' in row for row in rows)} failed. Tolerance {TOLERANCE}, {STEPS} steps.",
        "",
        "| family | place | verdict | worst row error | worst deviation | rounds | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["family"], row["place"]), []).append(row)
    for (family, place), own in groups.items():
        verdicts = Counter(row["verdict"] or f"crash: {row['crash']}" for row in own)
        cells = [
            family,
            place,
            "; ".join(f"{count} {verdict}" for verdict, count in verdicts.items()),
            worst(own, "row_error"),
            worst(own, "deviation"),
            "/".join(str(row.get("rounds", "")) for row in own),
            ", ".join(sorted({row["failed"] for row in own if "failed" in row})),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def worst(rows: list[dict[str, Any]], column: str) -> str:
    values = [row[column] for row in rows if row.get(column) is not None]
    return f"{max(values):.1e}" if values else ""
