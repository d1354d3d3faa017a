# SPDX-License-Identifier: GPL-3.0-or-later
"""How many model calls a measurement needs: grids of several efforts side by side on the embedded networks,
beside ComfyUI's *simple*.

Bar: with at most 60 calls (``CHECK_CALLS`` of them included) as good as thoroughly measured.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from ..stability.grids import make_grid
from ..stability.linearized import linearize
from ..stability.profile import THOROUGH, Effort, level_sigmas
from ..stability.solvers import SOLVERS
from ._stability_mixtures import Case
from ._stability_pictures import GUIDANCE, picture_case
from .stability import ROOT, geometric_mean
from .stability_networks import SETTINGS

EFFORTS = (THOROUGH, Effort(12, 5, 1), Effort(12, 3, 1), Effort(19, 2, 1))
NETWORKS = (("teacher", GUIDANCE), ("unet", 1.0), ("teacher", 1.0), ("teacher", 8.0))
PICTURES, REFERENCE_STEPS = 32, 120


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a model, solver, number of steps and grid, and at the end one a grid. ``quick``: the teacher at
    CFG 4 and the student.
    """
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=not torch.cuda.is_available())
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for network in NETWORKS[: 2 if quick else None]:
            rows += compare(picture_case(*network, PICTURES))
    return rows + summary(rows)


def compare(case: Case) -> list[dict[str, Any]]:
    from comfy.samplers import SCHEDULER_NAMES, calculate_sigmas

    profiles = [case.profile(effort) for effort in EFFORTS]
    top, bottom = float(case.sampling.sigma_max), float(case.sampling.sigma_min)
    fine = level_sigmas(top, bottom, REFERENCE_STEPS, profiles[0].flow)
    reference = case.ends(torch.cat([fine, fine.new_zeros(1)]), "dpmpp_2m").double()
    models = {
        f"{effort.levels} levels, {effort.probes} probes": (linearize(profile), profile.calls)
        for effort, profile in zip(EFFORTS, profiles, strict=True)
    }
    rows = []
    for solver, n in SETTINGS:
        core = {name: calculate_sigmas(case.sampling, name, n) for name in SCHEDULER_NAMES}
        grids = {"simple": (core["simple"], 0)}
        for name, (model, calls) in models.items():
            grids[name] = (make_grid(model, n, SOLVERS[solver], list(core.values())), calls)
        for name, (grid, calls) in grids.items():
            error = (case.ends(grid, solver).double() - reference).square().sum()
            row = {"model": case.name, "solver": solver, "steps": n, "grid": name}
            row["rel_mse"] = float(error / reference.square().sum())
            rows.append({**row, "calibration_calls": calls})
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over all settings."""
    errors: dict[Any, dict[str, float]] = defaultdict(dict)
    for row in rows:
        errors[row["model"], row["solver"], row["steps"]][row["grid"]] = row["rel_mse"]
    calls = {row["grid"]: row["calibration_calls"] for row in rows}
    return [
        {
            "model": "all",
            "grid": name,
            "settings": len(errors),
            "rel_mse": geometric_mean(errors, name),
            "calibration_calls": made,
        }
        for name, made in calls.items()
    ]
