# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids of few steps compared by the images they give, against a reference of many steps from the same noise.

Bars: on the geometric mean over models and solvers at 6 to 12 steps, a relative MSE 30 % below the best
single competitor; in no row more than 10 % above the best of ComfyUI's schedulers, beyond what the images can
tell; fewer than 500 calls for calibration. Probes and images have different seeds. The
mixtures called "held out" were not used for choosing any constant. Networks: ``stability_networks``.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.steps import euler_step
from ..stability import curves
from ..stability.equidistribution import equidistribute
from ..stability.grids import (
    cheapest_grid,
    cheapest_path,
    curvature_grid,
    density_grid,
    end_in_zero,
    make_grid,
)
from ..stability.linearized import LinearizedModel, linearize
from ..stability.profile import QUICK, THOROUGH, Effort, Profile, level_sigmas
from ..stability.solvers import SOLVERS, Solver
from ._stability_mixtures import SEED, Case, mixture_cases
from ._stability_table import table

__all__ = ["run", "table"]

ROOT = Path(__file__).resolve().parents[1]
STEPS = (6, 8, 10, 12, 20)
FEW = range(6, 13)
MIXTURE_SEEDS = 512
"""Most of the error of a good grid is a few images in a hundred that end in another mode: fewer seeds would
compare their numbers.
"""
OURS = "dizzydiff"
RESAMPLES, INTERVAL = 2000, (0.025, 0.975)
"""Of the images, for what their number can tell of a quotient of two errors."""
GITS_FACTOR, GITS_EFFORT = 1.15, Effort(levels=61, probes=16, directions=0)


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a model, solver, number of steps and grid, and at the end one a grid over all of them."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=not torch.cuda.is_available())
    settings = tuple(itertools.product(SOLVERS, (6, 10) if quick else STEPS))
    rows = []
    with torch.inference_mode():
        for case in mixture_cases(64 if quick else MIXTURE_SEEDS):
            rows += compare(case, settings, 60 if quick else 200)
    return rows + summary(rows)


def compare(case: Case, settings: Iterable[tuple[str, int]], reference_steps: int) -> list[dict[str, Any]]:
    thorough, quick, dense = (case.profile(effort) for effort in (THOROUGH, QUICK, GITS_EFFORT))
    fine = level_sigmas(
        float(case.sampling.sigma_max), float(case.sampling.sigma_min), reference_steps, thorough.flow
    )
    reference = case.ends(torch.cat([fine, fine.new_zeros(1)]), "dpmpp_2m")
    length = reference.double().square().sum()
    models = {"thorough": (linearize(thorough), thorough.calls), "quick": (linearize(quick), quick.calls)}
    rows: list[dict[str, Any]] = []
    for solver, n in settings:
        errors: dict[str, Tensor] = {}
        for name, (grid, calls) in grids_of(case, models, dense, SOLVERS[solver], n).items():
            ends = case.ends(grid, solver)
            errors[name] = (ends.double() - reference).flatten(1).square().sum(1) / length
            rows.append(
                {
                    "model": case.name,
                    "solver": solver,
                    "steps": n,
                    "grid": name,
                    "rel_mse": float(errors[name].sum()),
                    **case.judge(ends, reference),
                    "calibration_calls": calls,
                }
            )
        for row in rows[-len(errors) :]:
            row["to_best_of_core"] = to_best_of_core(errors, row["grid"])
    return rows


def to_best_of_core(errors: dict[str, Tensor], name: str) -> list[float]:
    """A grid's error over that of the best of ComfyUI's, and the ends of its 95 % interval by resampling the
    images. errors: grid -> [S], an image each.
    """
    from comfy.samplers import SCHEDULER_NAMES

    best = min((errors[core] for core in SCHEDULER_NAMES), key=lambda error: float(error.sum()))
    g = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(len(best), (RESAMPLES, len(best)), generator=g)
    ratios = errors[name][drawn].sum(1) / best[drawn].sum(1).clamp(min=1e-300)
    ends = ratios.quantile(torch.tensor(INTERVAL, dtype=ratios.dtype))
    return [float(errors[name].sum() / best.sum()), *ends.tolist()]


def grids_of(
    case: Case, models: dict[str, tuple[LinearizedModel, int]], dense: Profile, solver: Solver, n: int
) -> dict[str, tuple[Tensor, int]]:
    """Name -> grid and what it cost to calibrate."""
    from comfy.samplers import SCHEDULER_NAMES, calculate_sigmas
    from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler

    core = {name: calculate_sigmas(case.sampling, name, n) for name in SCHEDULER_NAMES}
    model, calls = models["thorough"]
    quick_model, quick_calls = models["quick"]
    grids = {name: (grid, 0) for name, grid in core.items()}
    if float(case.sampling.sigma_max) > 1:
        grids["align your steps"] = (AlignYourStepsScheduler.execute("SD1", n, 1.0).result[0], 0)
    grids["gits"] = (gits(dense, n), dense.calls)
    grids["sqrt curvature"] = (curvature_grid(model, n), calls)
    grids["measured norm"] = (equal_stability_grid(model, n), calls)
    if case.bound is not None:
        bound = equidistribute(model.sigmas, case.bound(model.sigmas), n)
        grids["the paper's bound"] = (end_in_zero(bound), 0)
    grids[f"{OURS}, density"] = (density_grid(model, n, solver), calls)
    grids[f"{OURS}, dynamic programming"] = (cheapest_grid(model, n, solver), calls)
    grids[f"{OURS}, quick"] = (make_grid(quick_model, n, solver, list(core.values())), quick_calls)
    grids[OURS] = (make_grid(model, n, solver, list(core.values())), calls)
    return grids


def gits(dense: Profile, steps: int) -> Tensor:
    """GITS as published: the path of least sum of Euler's local errors, each later one 1.15 times as dear,
    over 61 levels.
    """
    x, D, sigmas = dense.states, dense.denoised, dense.sigmas
    M = len(sigmas)
    landed = euler_step(x[:, :, None], D[:, :, None], sigmas[:, None, None], sigmas[None, :, None])
    cost = (landed - x[:, None]).norm(dim=-1).mean(0)
    return end_in_zero(torch.cat([sigmas[cheapest_path(cost[: M - 1], steps, GITS_FACTOR)], sigmas[-1:]]))


def equal_stability_grid(model: LinearizedModel, steps: int) -> Tensor:
    """The paper's (arXiv 2606.03820): equal integrals of the measured ||J||. It is for cutting a horizon into
    segments to distill, not for sampling.
    """
    return end_in_zero(equidistribute(model.sigmas, curves.lipschitz(model), steps))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a grid: geometric means at few steps, over all models and over the held-out ones; and all rows
    beside core's best.
    """
    from comfy.samplers import SCHEDULER_NAMES

    errors: dict[tuple[str, str, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        errors[row["model"], row["solver"], row["steps"]][row["grid"]] = row["rel_mse"]
    few = {key: grids for key, grids in errors.items() if key[2] in FEW}
    held_out = {key: grids for key, grids in few.items() if "held out" in key[0]}
    calls = {row["grid"]: row["calibration_calls"] for row in rows}
    summaries = []
    for name in sorted(calls, key=lambda name: geometric_mean(few, name)):
        to_core = [
            grids[name] / min(grids[core] for core in SCHEDULER_NAMES)
            for grids in errors.values()
            if name in grids
        ]
        summaries.append(
            {
                "model": "all",
                "solver": "all",
                "steps": "6 to 12",
                "grid": name,
                "rel_mse": geometric_mean(few, name),
                **({"rel_mse_held_out": geometric_mean(held_out, name)} if held_out else {}),
                "worst_to_best_of_core": max(to_core),
                "rows_above_best_of_core": sum(ratio > 1.1 for ratio in to_core),
                "rows": len(to_core),
                "calibration_calls": calls[name],
                "core": list(SCHEDULER_NAMES),
            }
        )
    return summaries


def geometric_mean(table: dict[Any, dict[str, float]], name: str) -> float:
    """Over the entries that have this grid, NaN for none of them."""
    logs = [math.log(max(errors[name], 1e-12)) for errors in table.values() if name in errors]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
