# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors that *How Many Steps* and *Compare Sigmas* foretell, beside those of sampled pictures.

Bar: within a factor of 1.5 in 90 % of the settings. Truth is the RMS distance to a solution of many steps
from the same noise over the RMS of that, on the mixtures and the embedded networks of ``stability`` and
``stability_networks``: the constant of the forecast was chosen on the mixtures that are not held out.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from ..stability.foretold import relative_error
from ..stability.grids import make_grid
from ..stability.linearized import linearize
from ..stability.profile import QUICK, THOROUGH, level_sigmas
from ..stability.solvers import SOLVERS
from ._stability_mixtures import Case, mixture_cases
from ._stability_pictures import GUIDANCE, picture_case
from .stability import OURS, ROOT

STEPS = (4, 6, 8, 12, 20, 32)
OTHER = "simple"
FACTORS = (1.5, 2.0)
MIXTURE_SEEDS, PICTURES = 128, 16
REFERENCE_STEPS = 120
NETWORKS = (("teacher", GUIDANCE), ("teacher", 1.0), ("unet", 1.0))


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a model, solver, number of steps and grid, and at the end one a kind of model and effort."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=not torch.cuda.is_available())
    rows = []
    with torch.inference_mode():
        networks = (picture_case(*each, PICTURES) for each in NETWORKS[: 1 if quick else None])
        for case in itertools.chain(networks, mixture_cases(MIXTURE_SEEDS)):
            rows += foretold(case, STEPS[1:4] if quick else STEPS)
    return rows + summary(rows)


def foretold(case: Case, counts: Iterable[int]) -> list[dict[str, Any]]:
    from comfy.samplers import SCHEDULER_NAMES, calculate_sigmas

    thorough = case.profile(THOROUGH)
    models = {"thorough": linearize(thorough), "quick": linearize(case.profile(QUICK))}
    top, bottom = float(case.sampling.sigma_max), float(case.sampling.sigma_min)
    fine = level_sigmas(top, bottom, REFERENCE_STEPS, thorough.flow)
    reference = case.ends(torch.cat([fine, fine.new_zeros(1)]), "dpmpp_2m").double()
    rows: list[dict[str, Any]] = []
    for solver, n in itertools.product(SOLVERS, counts):
        core = {name: calculate_sigmas(case.sampling, name, n) for name in SCHEDULER_NAMES}
        ours = make_grid(models["thorough"], n, SOLVERS[solver], list(core.values()))
        for name, grid in ((OURS, ours), (OTHER, core[OTHER])):
            off = case.ends(grid, solver).double() - reference
            row = {"model": case.name, "solver": solver, "steps": n, "grid": name}
            row["error"] = float(off.norm() / reference.norm())
            rows.append(
                row | {kind: relative_error(model, grid, SOLVERS[solver]) for kind, model in models.items()}
            )
    return rows


def kind_of(model: str) -> str:
    if model.startswith("tiny"):
        return "networks"
    return "mixtures, held out" if "held out" in model else "mixtures"


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a kind of model, grid and effort: how far forecasts lie from the truth."""
    ratios: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row, effort in itertools.product(rows, ("thorough", "quick")):
        for grid in (row["grid"], "both"):
            ratios[kind_of(row["model"]), grid, effort].append(math.log(row[effort] / row["error"]))
    return [
        {
            "summary": kind,
            "grid": grid,
            "effort": effort,
            "settings": len(logs),
            "foretold / true, geometric mean": math.exp(sum(logs) / len(logs)),
            **{f"within {f:g}": sum(abs(x) <= math.log(f) for x in logs) / len(logs) for f in FACTORS},
        }
        for (kind, grid, effort), logs in ratios.items()
    ]
