# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids of flow models, and how much of core's *simple* is to be mixed into them.

The flow mixture of ``stability``, tiny/flow at CFG 2 and its student; thorough profiles. Errors as in
``stability_networks``; the last rows are geometric means.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from ..stability.grids import blend, make_grid
from ..stability.linearized import linearize
from ..stability.profile import THOROUGH, level_sigmas
from ..stability.solvers import SOLVERS
from ._stability_mixtures import Case, mixture_cases
from ._stability_pictures import picture_case
from .stability import ROOT

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SETTINGS = (
    ("dpmpp_2m", 8),
    ("dpmpp_2m", 12),
    ("dpmpp_2m", 20),
    ("euler", 8),
    ("euler", 12),
    ("euler", 20),
)
REFERENCE_STEPS = 150


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a model, solver, number of steps and share; ``quick``: the mixture alone, 64 images."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=not torch.cuda.is_available())
    rows = []
    with torch.inference_mode():
        for case in cases(quick):
            rows += list(compared(case))
    return rows + means(rows)


def cases(quick: bool) -> Iterator[Case]:
    yield from (case for case in mixture_cases(64 if quick else 256) if "flow" in case.name)
    if not quick:
        yield picture_case("flow student", 1.0, 32)
        yield picture_case("flow", 2.0, 32)


def compared(case: Case) -> Iterator[dict[str, Any]]:
    from comfy.samplers import SCHEDULER_NAMES, calculate_sigmas

    sampling, model = case.sampling, linearize(case.profile(THOROUGH))
    fine = level_sigmas(float(sampling.sigma_max), float(sampling.sigma_min), REFERENCE_STEPS, True)
    reference = case.ends(torch.cat([fine, fine.new_zeros(1)]), "dpmpp_2m").double()
    for solver, n in SETTINGS:
        core = {name: calculate_sigmas(sampling, name, n) for name in SCHEDULER_NAMES}
        grid = make_grid(model, n, SOLVERS[solver], list(core.values()))
        for share in SHARES:
            ends = case.ends(blend(grid, core["simple"], share), solver)
            error = float((ends - reference).square().sum() / reference.square().sum())
            row = {"model": case.name, "solver": solver, "steps": n, "share": share, "rel_mse": error}
            print(*row.values(), flush=True)
            yield row


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    logs: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        logs[row["model"], row["share"]].append(math.log(row["rel_mse"]))
    return [
        {"model": model, "solver": "all", "share": share, "rel_mse": math.exp(sum(some) / len(some))}
        for (model, share), some in logs.items()
    ]
