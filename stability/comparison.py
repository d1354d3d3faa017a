# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to say of SIGMAS that are put beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..common.dry_run import Untraceable
from ..common.messages import Say
from .errors import BadSigmas
from .foretold import Unforetellable, percent, relative_error
from .linearized import LinearizedModel
from .measured import Measured
from .sigmas_plot import Grid, read_sigmas
from .solvers import Solver

MOST_LETTERS = 24
"""Of a name, which has to fit into the picture."""


def compared(
    given: Sequence[Any], names: str, measured: Measured | None, solver: Solver, sampler: Any, say: Say
) -> list[Grid]:
    """SIGMAS with their names and, where a model was measured, the error foretold for each.

    names: separated by commas, in order; what has none is numbered from 1. sampler: a SAMPLER in place of the
    solver, or None. Raises BadSigmas.
    """
    if not given:
        raise BadSigmas("Nothing is connected; expected SIGMAS, one or more.")
    told = [name.strip()[:MOST_LETTERS] for name in names.split(",")] + [""] * len(given)
    titles = [name or str(n) for n, name in enumerate(told[: len(given)], 1)]
    grids = [
        Grid(title, read_sigmas(f"sigmas {title}", value)) for title, value in zip(titles, given, strict=True)
    ]
    foretelling = measured.foretelling_solver(solver, sampler, say) if measured else None
    if measured is None or measured.linearized is None or foretelling is None:
        return grids
    return [replace(grid, note=_note(measured.linearized, grid, foretelling, say)) for grid in grids]


def _note(model: LinearizedModel, grid: Grid, solver: Solver, say: Say) -> str:
    if not len(grid.sigmas):
        return ""
    try:
        return f"about {percent(relative_error(model, grid.sigmas, solver))} off"
    except (Unforetellable, Untraceable) as why:
        say(f"The error of {grid.name} is not foretold: {why}.")
        return "error unknown"
