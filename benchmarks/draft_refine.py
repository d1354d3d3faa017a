# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine beside the paper's mode, the same sampler with fewer steps, and parallel samplers of other
papers.

A row is one setting: rounds and model calls (means over seeds), the deviation from the sequential result with
as many steps and, for deterministic samplers, the error against a converged solution (both RMS distance over
RMS). Seeds share a batch where every draft is used; verified runs decide for each seed alone.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._draft_costs import overhead, prompt_accuracy, wall_clock
from ._draft_subjects import ROOT, Subject, subjects
from ._draft_table import table
from ._parallel_peers import Drift, paradigms, parastep, relative_rms

__all__ = ["run", "table"]

SMOOTH = ("euler", "dpmpp_2m")
OTHERS = ("heun", "euler_ancestral", "dpmpp_2m_sde", "er_sde")
STOCHASTIC = ("euler_ancestral", "dpmpp_2m_sde", "er_sde")
TOLERANCE = 0.01
CONVERGED_STEPS = 300
Method = Callable[[Drift, Tensor], tuple[Tensor, int]]
"""(drift, x) -> (result, rounds)."""


@dataclass(frozen=True)
class Job:
    """One sampler on one model at one schedule, and what to vary."""

    subject: str
    sampler: str
    schedule: str
    steps: int
    widths: tuple[int, ...]
    seeds: int


def jobs(quick: bool) -> Iterator[Job]:
    """``quick``: Karras, 28 steps, few seeds, no CFG teacher. In full, mixtures are sampled in more ways than
    networks.
    """
    exact, networks = ("mixture A", "mixture B"), ("tiny",) if quick else ("tiny/teacher", "tiny")
    if quick:
        yield from (
            Job(s, name, "karras", 28, (2, 4), 8 if s in exact else 2)
            for s in (*exact, *networks)
            for name in SMOOTH
        )
        return
    for subject in networks:
        yield from (Job(subject, name, "karras", steps, (2, 4), 32) for steps in (28, 50) for name in SMOOTH)
        yield from (Job(subject, name, "karras", 50, (4,), 32) for name in OTHERS)
    for subject in exact:
        settings = itertools.product(("karras", "simple"), (20, 28, 50))
        yield from (
            Job(subject, name, schedule, steps, (2, 4, 8), 32)
            for schedule, steps in settings
            for name in SMOOTH
        )
        yield from (Job(subject, name, "karras", 50, (4,), 32) for name in OTHERS)


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows, the clock's first, when nothing else runs; then as many settings side by side as there are
    cores.
    """
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = [wall_clock(50, 3 if quick else 5), overhead(28, 3 if quick else 5)]
    pictures = [
        partial(prompt_accuracy, name, 16 if quick else 100, 28, 4, TOLERANCE)
        for name in ("tiny/teacher", "tiny")
    ]
    for group in side_by_side([*pictures, *(partial(rows_of, job) for job in jobs(quick))]):
        rows += group
    return rows


def side_by_side(work: Sequence[Callable[[], list[dict[str, Any]]]]) -> Iterator[list[dict[str, Any]]]:
    """What each piece of work returns, in order; processes are forked, so that they share what is loaded."""
    if "fork" not in multiprocessing.get_all_start_methods():
        yield from (piece() for piece in work)
        return
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        yield from (future.result() for future in [pool.submit(piece) for piece in work])


def rows_of(job: Job) -> list[dict[str, Any]]:
    started = time.perf_counter()
    with torch.inference_mode():
        subject = next(each for each in subjects(job.subject == "tiny/teacher") if each.name == job.subject)
        rows = list(compare(subject, job))
    print(f"{job} took {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return rows


def compare(subject: Subject, job: Job) -> Iterator[dict[str, Any]]:
    """The rows of one job."""
    import comfy.samplers

    name, steps, seeds = job.sampler, job.steps, list(range(job.seeds))
    sigmas = subject.sigmas(name, steps, job.schedule)
    inner = comfy.samplers.sampler_object(name)
    common = {"model": subject.name, "sampler": name, "schedule": job.schedule, "steps": steps}
    calls = 2 * steps - 1 if name == "heun" else steps
    reference, alone, wall = (
        subject.sample(inner, sigmas, seeds),
        *timed(lambda: one_by_one(subject, inner, sigmas, seeds)),
    )
    converged = None
    if name not in STOCHASTIC:
        converged = subject.sample(
            comfy.samplers.sampler_object("dpmpp_2m"),
            subject.sigmas("dpmpp_2m", CONVERGED_STEPS, "karras"),
            seeds,
        )

    def row(
        mode: str, drafts: str, k: int, rounds: float, evaluations: float, result: Tensor, against: Tensor
    ) -> dict[str, Any]:
        measured = {
            **common,
            "mode": mode,
            "drafts": drafts,
            "carry": {"extrapolated": "F", "frozen": "eps"}.get(drafts, "none"),
            "width": k,
            "rounds": rounds,
            "model_calls": evaluations,
            **spread_of(relative_rms(result, against)),
        }
        return (
            measured
            if converged is None
            else measured | {"error_median": statistics.median(relative_rms(result, converged))}
        )

    if converged is not None:
        yield row("sequential", "none", 1, calls, calls, alone, reference)
    for k in job.widths:
        for drafts in ("frozen", "extrapolated"):
            rounds, evaluations, result, _ = drafted(subject, inner, "aggressive", k, drafts, sigmas, [seeds])
            yield row("aggressive", drafts, k, rounds, evaluations, result, reference)
        rounds, evaluations, result, seconds = drafted(
            subject, inner, "verified", k, "extrapolated", sigmas, [[seed] for seed in seeds]
        )
        yield row("verified", "extrapolated", k, rounds, evaluations, result, alone) | {
            "wall_s": seconds / len(seeds),
            "sequential_wall_s": wall / len(seeds),
        }
        if converged is not None:
            fewer = round(steps * (1 + (calls - 1) / k) / calls)
            result = subject.sample(inner, subject.sigmas(name, fewer, job.schedule), seeds)
            yield row(
                "fewer steps", "none", 1, fewer * calls / steps, fewer * calls / steps, result, reference
            ) | {"for_width": k}
        if name == "euler" and (subject.exact or k == 4):
            for method, rounds, evaluations, result in peers(subject, sigmas, seeds, k):
                yield row(method, "none", k, rounds, evaluations, result, reference)


def one_by_one(subject: Subject, sampler: Any, sigmas: Tensor, seeds: list[int]) -> Tensor:
    return torch.cat([subject.sample(sampler, sigmas, [seed]) for seed in seeds])


def peers(
    subject: Subject, sigmas: Tensor, seeds: list[int], k: int
) -> Iterator[tuple[str, float, float, Tensor]]:
    """ParaDiGMS at two tolerances and ParaStep: (name, rounds, model calls, latents)."""
    settings: dict[str, Method] = {"ParaStep": partial(parastep, sigmas=sigmas, k=k)}
    for tolerance in (1e-1, 1e-2):
        settings[f"ParaDiGMS {tolerance:g}"] = partial(paradigms, sigmas=sigmas, k=k, tolerance=tolerance)
    for name, method in settings.items():
        yield name, *sampled_by(subject, method, sigmas, seeds)


def sampled_by(
    subject: Subject, method: Method, sigmas: Tensor, seeds: list[int]
) -> tuple[float, float, Tensor]:
    """(rounds, model calls, latents) of a method as a sampler function, a run a seed."""
    import comfy.samplers

    rounds: list[int] = []
    calls: list[float] = []

    def function(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, *_: Any, **__: Any) -> Tensor:
        def drift(state: Tensor, sigma: float) -> Tensor:
            calls.append(sigma)
            return (state - model(state, state.new_full([len(state)], sigma), **extra_args)) / sigma

        result, used = method(drift, x)
        rounds.append(used)
        return result

    result = one_by_one(subject, comfy.samplers.KSAMPLER(function), sigmas, seeds)
    return statistics.mean(rounds), len(calls) / len(seeds), result


def spread_of(deviations: list[float]) -> dict[str, Any]:
    ordered = sorted(deviations)
    return {
        "seeds": len(ordered),
        "deviation_median": statistics.median(ordered),
        "deviation_p95": ordered[int(0.95 * (len(ordered) - 1) + 0.5)],
    }


def drafted(
    subject: Subject, inner: Any, mode: str, k: int, drafts: str, sigmas: Tensor, batches: list[list[int]]
) -> tuple[float, float, Tensor, float]:
    """(rounds, evaluations, latents, seconds) of a run a batch of seeds."""
    from ..drafting.report import Report
    from ..drafting.sampler import DraftRefine, Settings

    reports: list[Report] = []
    settings = Settings(mode, k, TOLERANCE, drafts)  # type: ignore[arg-type]
    sampler = DraftRefine(inner, settings, on_report=reports.append)
    results, seconds = timed(lambda: torch.cat([subject.sample(sampler, sigmas, seeds) for seeds in batches]))
    return (
        statistics.mean(len(r.rounds) for r in reports),
        statistics.mean(r.evaluations for r in reports),
        results,
        seconds,
    )


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started
