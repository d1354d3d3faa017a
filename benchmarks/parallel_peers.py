# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine beside the parallel samplers of other papers, all with Euler steps on the same models.

A row is one method at one setting: rounds of at most *width* model calls (mean over seeds), and the deviation
from the sequential run, RMS distance over RMS (median, 95th percentile).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._draft_subjects import ROOT, Subject, embedded, smooth, subjects
from ._parallel_peers import chords, paradigms, parastep, parataa, relative_rms, srds
from .draft_refine import Method, drafted, one_by_one, sampled_by, side_by_side, spread_of

OURS = "DizzyDiff"
WIDTHS = (2, 4, 8)
CHORDS_STARTS = {
    2: (0, 0.32),
    4: (0, 0.16, 0.32, 0.64),
    8: (0, 0.04, 0.08, 0.16, 0.32, 0.48, 0.64, 0.8),
}
"""Where its cores begin, as parts of the run; of eight its authors' own for 50 steps, 0-2-4-8-16-24-32-40, of
fewer some of those.
"""


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: mixtures, 28 steps, 8 seeds."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    seeds, steps = list(range(8 if quick else 32)), (28,) if quick else (20, 28, 50)
    work = [
        partial(rows_of, name, schedule, n, seeds)
        for name, n in itertools.product(models(), steps)
        for schedule in ("karras", "simple", "beta")
        if sampled_so(name, schedule, n, quick)
    ]
    return [row for rows in side_by_side(work) for row in rows]


def sampled_so(name: str, schedule: str, steps: int, quick: bool) -> bool:
    """Flow models are not sampled on Karras' sigmas; networks, whose calls cost, in 28 steps of *simple*."""
    if name.startswith("tiny"):
        return not quick and (schedule, steps) == ("simple", 28)
    return not ("flow" in name and schedule == "karras")


def models() -> dict[str, Callable[[], Subject]]:
    """By name; made where they are sampled."""
    exact = {name: partial(_one_of, name) for name in ("mixture A", "mixture B", "tiny/teacher")}
    pictures = {
        f"mixture of pictures, {'flow' if of_flow else 'eps'}, CFG {cfg:g}": partial(smooth, cfg, of_flow)
        for of_flow, cfg in itertools.product((False, True), (1.0, 3.0))
    }
    return {**exact, **pictures, "tiny/flow/student": partial(embedded, "tiny/flow/student", 1.0)}


def _one_of(name: str) -> Subject:
    return next(each for each in subjects(teacher=True) if each.name == name)


def rows_of(name: str, schedule: str, steps: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Every method at every width, of one model at one setting."""
    with torch.inference_mode():
        return list(_rows(models()[name](), schedule, steps, seeds))


def _rows(subject: Subject, schedule: str, steps: int, seeds: list[int]) -> Iterator[dict[str, Any]]:
    import comfy.samplers

    euler, sigmas = comfy.samplers.sampler_object("euler"), subject.sigmas("euler", steps, schedule)
    every = one_by_one(subject, euler, sigmas, seeds)
    singly = [[seed] for seed in seeds]

    def row(method: str, width: int, rounds: float, result: Tensor) -> dict[str, Any]:
        setting = {"model": subject.name, "schedule": schedule, "steps": steps, "width": width}
        return {**setting, "method": method, "rounds": rounds, **spread_of(relative_rms(result, every))}

    for k in WIDTHS:
        rounds, _, result, _ = drafted(subject, euler, "verified", k, "extrapolated", sigmas, singly)
        yield row(OURS, k, rounds, result)
        fewer = subject.sigmas("euler", round(rounds), schedule)
        yield row("fewer steps", k, round(rounds), one_by_one(subject, euler, fewer, seeds))
        frozen, _, result, _ = drafted(subject, euler, "aggressive", k, "frozen", sigmas, singly)
        yield row("DRiffusion", k, frozen, result)
        for method, function in methods(sigmas, k).items():
            rounds, _, result = sampled_by(subject, function, sigmas, seeds)
            yield row(method, k, rounds, result)


def methods(sigmas: Tensor, k: int) -> dict[str, Method]:
    """The peers at k evaluations a round, by name and setting."""
    steps = len(sigmas) - 1
    starts = sorted({round(part * steps) for part in CHORDS_STARTS[k]})
    made: dict[str, Method] = {"ParaStep": partial(parastep, sigmas=sigmas, k=k)}
    for t in (0.1, 0.03, 0.01):
        made[f"ParaDiGMS {t:g}"] = partial(paradigms, sigmas=sigmas, k=k, tolerance=t)
        made[f"ParaTAA {t:g}"] = partial(parataa, sigmas=sigmas, k=k, tolerance=t)
    for n in (1, 2):
        made[f"SRDS {n}"] = partial(srds, sigmas=sigmas, k=k, iterations=n)
    for core in range(1, len(starts))[-3:]:
        made[f"CHORDS {len(starts) - core}"] = partial(chords, sigmas=sigmas, starts=starts, result_of=core)
    return made


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: rounds / median, 95th percentile of every method in every setting, and how often each peer is
    ahead.
    """
    settings = list(dict.fromkeys(_setting(row) for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(_setting(row), row["method"]): row for row in rows}
    lines = [
        "Rounds / deviation, median and 95th percentile. SRDS: iterations; CHORDS: of its cores, the how "
        "many-th to end.",
        "",
        f"| {' | '.join(('model', 'schedule', 'steps', 'width', *names))} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for setting in settings:
        found = (cells.get((setting, name)) for name in names)
        lines.append(f"| {' | '.join((*map(str, setting), *map(_cell, found)))} |")
    lines += [
        "",
        "| peer | settings | fewer rounds | nearer at the median | both | neither |",
        "|---" * 6 + "|",
    ]
    for name in names:
        pairs = [(cells[s, OURS], cells[s, name]) for s in settings if (s, name) in cells and name != OURS]
        if pairs:
            lines.append(f"| {name} | {len(pairs)} | {' | '.join(map(str, _ahead(pairs)))} |")
    return "\n".join(lines) + "\n"


def _setting(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("model", "schedule", "steps", "width"))


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{row['rounds']:.3g} / {row['deviation_median']:.1e}, {row['deviation_p95']:.1e}"


def _ahead(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[int, int, int, int]:
    """Settings where the second of a pair takes fewer rounds, is nearer, is both, and is neither."""
    fewer = [theirs["rounds"] < ours["rounds"] for ours, theirs in pairs]
    nearer = [theirs["deviation_median"] < ours["deviation_median"] for ours, theirs in pairs]
    both = [a and b for a, b in zip(fewer, nearer, strict=True)]
    neither = [not (a or b) for a, b in zip(fewer, nearer, strict=True)]
    return sum(fewer), sum(nearer), sum(both), sum(neither)
