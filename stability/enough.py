# SPDX-License-Identifier: GPL-3.0-or-later
"""How many steps a measured model needs, with a solver or a sampler."""

from __future__ import annotations

from typing import Any

from ..common.dry_run import Untraceable
from ..common.messages import Say
from .errors import BadTolerance
from .foretold import percent, relative_error
from .measured import Measured
from .profile import Progress
from .solvers import Solver
from .steps import COUNTS, MOST_STEPS, UNTOLD_STEPS, Forecast, forecast


def forecast_of(
    measured: Measured,
    solver: Solver,
    sampler: Any,
    *,
    say: Say,
    progress: Progress,
    denoise: float = 1.0,
    share: float = 0.0,
    tolerance: float = 0.0,
) -> Forecast | None:
    """The errors foretold for grids of 1 to 50 steps, up to the first within the tolerance; None, with a
    word, where nothing can be foretold. Each grid is the one that a sampler would get.

    solver, sampler: as ``Measured.foretelling_solver``; denoise, share: as ``Measured.sigmas``.
    """
    chosen = measured.foretelling_solver(solver, sampler, say)
    model = measured.linearized
    if chosen is None or model is None:
        return None

    def error_of(steps: int) -> float:
        progress(COUNTS.index(steps), len(COUNTS))
        return relative_error(model, measured.sigmas(steps, denoise, chosen, share, say=_unsaid), chosen)

    try:
        return forecast(error_of, tolerance)
    except Untraceable as why:
        say(f"No error is foretold for this sampler: {why}.")
        return None


def _unsaid(word: str) -> None:
    """Of grids that are looked at and not given."""


def fewest_steps(
    measured: Measured,
    solver: Solver,
    sampler: Any,
    *,
    tolerance: float,
    say: Say,
    progress: Progress,
    denoise: float,
    share: float = 0.0,
) -> int:
    """The fewest steps, from 1 to 50, whose foretold error is within the tolerance, which is said: 50 where
    none is, 20 where nothing can be foretold. Raises BadTolerance.
    """
    if not 0 < tolerance < 1:
        raise BadTolerance(f"tolerance is {tolerance:g}; expected a share of the picture between 0 and 1.")
    if denoise <= 0:
        return 1  # nothing is sampled
    told = forecast_of(
        measured,
        solver,
        sampler,
        say=say,
        progress=progress,
        denoise=denoise,
        share=share,
        tolerance=tolerance,
    )
    if told is None:
        say(f"Steps are 0, and how many are needed is not known: {UNTOLD_STEPS} are made.")
        return UNTOLD_STEPS
    within, steps = percent(tolerance), told.fewest(tolerance)
    if steps is None:
        error = percent(told.errors[MOST_STEPS])
        say(f"{MOST_STEPS} steps, foretold to be {error} off: no number up to it is within {within}.")
        return MOST_STEPS
    say(f"{steps} steps, the fewest that are foretold to be within {within} of ever more steps.")
    return steps
