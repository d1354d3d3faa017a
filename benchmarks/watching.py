# SPDX-License-Identifier: GPL-3.0-or-later
"""Sigmas learned from pictures that were made anyway, beside those measured on purpose and core's.

3 and 10 pictures of other captions are watched, by euler on *simple* and by dpmpp_2m on *karras*, 20 steps.
Errors are those of ``stability_networks``. A row says what watching keeps and how long it takes,
of a video's latent.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..stability.grids import hedged, make_grid
from ..stability.linearized import LinearizedModel, linearize
from ..stability.profile import QUICK, THOROUGH, level_sigmas
from ..stability.solvers import SOLVERS
from ..stability.watched import ENOUGH, FEW, Recorder, first_pictures, profile_of
from ._stability_mixtures import Case
from ._stability_pictures import picture_case
from .stability import ROOT

NETWORKS = (("teacher", 4.0), ("teacher", 1.0), ("unet", 1.0), ("flow student", 1.0), ("flow", 2.0))
WATCHED = (("euler", "simple"), ("dpmpp_2m", "karras"))
WATCHED_STEPS = 20
SETTINGS = (("dpmpp_2m", 8), ("dpmpp_2m", 12), ("euler", 12), ("dpmpp_2m", 20), ("euler", 20))
CORE = ("simple", "karras", "beta", "sgm_uniform")
VIDEO = (1, 16, 21, 90, 160)
"""The latent of 81 frames of 720p, as Wan's."""


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: the teacher at CFG 4 and two settings, 16 pictures."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=not torch.cuda.is_available())
    rows = [cost()]
    with torch.inference_mode():
        for name, cfg in NETWORKS[: 1 if quick else None]:
            case = picture_case(name, cfg, 16 if quick else 32)
            rows += compared(case, SETTINGS[1:3] if quick else SETTINGS, 60 if quick else 150)
    return rows


def compared(case: Case, settings: Any, reference_steps: int) -> Iterator[dict[str, Any]]:
    """A row a solver, number of steps and grid."""
    from comfy.samplers import SCHEDULER_NAMES, calculate_sigmas

    sampling = case.sampling
    models = dict(learned(case)) | {
        "measured quickly": linearize(case.profile(QUICK)),
        "measured thoroughly": linearize(case.profile(THOROUGH)),
    }
    flow = case.profile(QUICK).flow
    fine = level_sigmas(float(sampling.sigma_max), float(sampling.sigma_min), reference_steps, flow)
    reference = case.ends(torch.cat([fine, fine.new_zeros(1)]), "dpmpp_2m").double()
    for solver, n in settings:
        core = {name: calculate_sigmas(sampling, name, n) for name in SCHEDULER_NAMES}
        grids = {name: core[name] for name in CORE} | {
            name: hedged(
                make_grid(model, n, SOLVERS[solver], list(core.values())), core["simple"].double(), flow
            )
            for name, model in models.items()
        }
        for name, grid in grids.items():
            error = (case.ends(grid, solver) - reference).square().sum() / reference.square().sum()
            row = {"model": case.name, "solver": solver, "steps": n, "grid": name, "rel_mse": float(error)}
            print(*row.values(), flush=True)
            yield row


def learned(case: Case) -> Iterator[tuple[str, LinearizedModel]]:
    """What ``FEW`` and ``ENOUGH`` pictures tell."""
    from comfy.samplers import calculate_sigmas

    assert case.watched is not None
    sampling, flow = case.sampling, case.profile(QUICK).flow
    for solver, scheduler in WATCHED:
        seen = case.watched(calculate_sigmas(sampling, scheduler, WATCHED_STEPS), solver, ENOUGH)
        profile = profile_of(seen, float(sampling.sigma_max), float(sampling.sigma_min), flow)
        for pictures in (FEW, ENOUGH):
            name = f"{pictures} pictures, {solver} {scheduler}"
            yield name, linearize(first_pictures(profile, pictures))


def cost() -> dict[str, Any]:
    """Of watching a run over a video's latent: what is kept, and the medians of what it adds to a step and
    to the ends of a run.
    """
    sigmas = torch.linspace(1, 0, WATCHED_STEPS + 1)
    x = torch.randn(VIDEO, generator=torch.Generator().manual_seed(0))
    steps, ends, kept = [], [], 0
    for _ in range(5):
        begun, recorder = timed(Recorder, lambda *_: None, x)
        steps += [timed(recorder, step, x, x, WATCHED_STEPS)[0] for step in range(WATCHED_STEPS)]
        read, run = timed(recorder.run, sigmas)
        ends.append(begun + read + timed(profile_of, run, 1.0, 0.01, True)[0])
        kept = run.denoised.nbytes + run.start.nbytes
    return {
        "model": f"latent of {'x'.join(map(str, VIDEO))}",
        "kept_mb": kept / 2**20,
        "whole_mb": WATCHED_STEPS * x.nbytes / 2**20,
        "ms_a_step": 1e3 * statistics.median(steps),
        "ms_at_both_ends": 1e3 * statistics.median(ends),
    }


def timed(work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """Seconds, and what it gave."""
    began = time.perf_counter()
    result = work(*given)
    return time.perf_counter() - began, result


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a setting, a column a grid."""
    errors: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        if "grid" in row:
            errors.setdefault((row["model"], row["solver"], row["steps"]), {})[row["grid"]] = row["rel_mse"]
    names = list(next(iter(errors.values())))
    lines = [f"| model | solver, steps | {' | '.join(names)} |", f"|{'---|' * (len(names) + 2)}"]
    for (model, solver, steps), found in errors.items():
        cells = " | ".join(f"{found[name]:.4f}" for name in names)
        lines.append(f"| {model} | {solver}, {steps} | {cells} |")
    means = [torch.tensor([found[name] for found in errors.values()]).log().mean().exp() for name in names]
    lines.append(f"| geometric mean | | {' | '.join(f'{float(mean):.4f}' for mean in means)} |")
    return "\n".join([*lines, ""])
