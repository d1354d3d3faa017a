# SPDX-License-Identifier: GPL-3.0-or-later
"""Drafts under patches, guiders and samplers: each of core's nodes that makes one, and the kinds that other
packs bring, on a small UNet and a small flow transformer.

Each row is one graph at one place, told as in ``families``; ``effect`` is how far its plain picture is
from the one without the node, 0 where the node does nothing here.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from . import _core_nodes, families
from ._compositions import Composition, compositions
from ._core_nodes import LEFT_OUT, Lacking
from ._drafted import PLACES, attempt, nudged, plain, quiet, spread, told
from ._sampling import levels, relative_rms
from .networks.subject import Subject, make

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("SDXL (EDM)", "Flux")
STEPS, TOLERANCE = families.STEPS, families.TOLERANCE


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a network, graph and place; the quick run leaves core's nodes out."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    quiet()
    warnings.simplefilter("ignore")

    from .networks.families import NETWORKS as TABLE

    graphs = [*compositions(), *([] if quick else core_graphs())]
    rows: list[dict[str, Any]] = []
    for name in NETWORKS:
        subject = make(TABLE[name])
        for graph in graphs:
            started = time.perf_counter()
            new = list(measure(subject, graph))
            rows += new
            failed = sum("failed" in row for row in new)
            print(f"{name}, {graph.name}: {time.perf_counter() - started:.0f} s, {failed} failed", flush=True)
    return rows


def core_graphs() -> Iterator[Composition]:
    """One graph for each of core's nodes."""
    for name, kind in _core_nodes.node_classes().items():
        if name in LEFT_OUT:
            continue
        build = functools.partial(_core_nodes.make, name, kind)
        match _core_nodes.gives(kind):
            case "MODEL":
                yield Composition(name, patch=build)
            case "GUIDER":
                yield Composition(name, guider=build)
            case "SAMPLER":
                yield Composition(name, sampler=build)


def measure(subject: Subject, graph: Composition) -> Iterator[dict[str, Any]]:
    """A row a place, with one row of a latent where plain sampling takes no more; or one that says why it
    does not fit this network.
    """
    row = {"network": subject.name, "graph": graph.name, "rows": graph.rows}

    def guider(place: str) -> Callable[[], Any]:
        return lambda: graph.guider(subject, spread(graph.patch(subject, subject.model), place))

    try:
        sampler = graph.sampler(subject, subject.model)
        sigmas = graph.sigmas(levels(graph.patch(subject, subject.model), "euler", STEPS))
    except Lacking as why:
        yield {**row, "place": "", "verdict": f"not tried: {why}"}
        return
    except Exception as error:
        yield {**row, "place": "", "verdict": f"does not fit: {told(error)}"}
        return
    latent = subject.latent(graph.rows)
    reference, crash = plain(guider("one card"), graph.around(sampler), sigmas, latent, graph.seed)
    if crash and graph.rows > 1:
        yield from measure(subject, replace(graph, rows=1))
        return
    if crash:
        yield {**row, "place": "", "verdict": f"plain sampling crashes: {crash}"}
        return
    effect = relative_rms(reference, bare_picture(subject, graph.rows, graph.seed))
    with nudged(TOLERANCE):
        strayed, _ = plain(guider("one card"), graph.around(sampler), sigmas, latent, graph.seed)
    straying = relative_rms(strayed, reference)
    for place in PLACES:
        trial = attempt(
            guider(place), sampler, sigmas, latent, reference, TOLERANCE, graph.around, graph.seed
        )
        judged = families.judged(trial, max(families.MARGIN * TOLERANCE, straying))
        yield {**row, "place": place, "effect": effect, "nudged": straying, **judged}


@functools.cache
def bare_picture(subject: Subject, rows: int, seed: int) -> list[Tensor]:
    """What the network draws by Euler's steps with nothing around it."""
    bare = Composition("nothing")
    picture, _ = plain(
        lambda: bare.guider(subject, subject.model),
        bare.sampler(subject, subject.model),
        levels(subject.model, "euler", STEPS),
        subject.latent(rows),
        seed,
    )
    return picture


def table(rows: list[dict[str, Any]]) -> str:
    """A line a graph and network."""
    lines = [
        f"{len({row['graph'] for row in rows})} graphs on {len(NETWORKS)} networks, {len(rows)} rows, "
        f"{sum('failed' in row for row in rows)} failed. Tolerance {TOLERANCE}, {STEPS} steps.",
        "",
        "| graph | network | effect | nudged | " + " | ".join(PLACES) + " |",
        "|---|---|---|---|" + "---|" * len(PLACES),
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["graph"], row["network"]), []).append(row)
    for (graph, network), own in sorted(groups.items()):
        told_of = {row["place"]: cell(row) for row in own}
        shown = [told_of.get(place, "") for place in PLACES] if "" not in told_of else [told_of[""], "", ""]
        numbers = [f"{own[0][name]:.1e}" if name in own[0] else "" for name in ("effect", "nudged")]
        cells = [graph, network, *numbers, *(each.replace("|", "/") for each in shown)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
    """A picture in a few words."""
    failed = f"**{row['failed']}** " if "failed" in row else ""
    if row.get("crash"):
        return f"{failed}{row['crash']}"
    if row.get("deviation") is None:
        return str(row["verdict"])
    rounds = f", {row['rounds']} rounds" if row["rounds"] else ""
    return f"{failed}{row['verdict']}, {row['deviation']:.1e}{rounds}"
