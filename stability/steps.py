# SPDX-License-Identifier: GPL-3.0-or-later
"""How many steps are enough: errors foretold for grids of many lengths, in words and as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image

from ..common.pictures import INK, LinearAxis, LogAxis
from .drawing import COLOURS, LEFT, RIGHT, WIDTH, blank
from .foretold import percent

COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 26, 34, 50)
"""Numbers of steps that are foretold; those between are read off lines in logarithms."""
MOST_STEPS = COUNTS[-1]
BOUNDS = (0.2, 0.1, 0.05, 0.02, 0.01)
"""Errors that a sentence names, as far as so many steps reach them."""
MOST_NAMED = 3
LEAST_ERROR = 1e-9
"""Where a solver is exact: keeps logarithms finite."""
DOUBT = "Foretold, not sampled: true to a factor of about 2"
PANEL, TOP, FOOT = 330, 60, 68
"""Pixels: of the panel, above it and below."""

UNTOLD_STEPS = 20
"""Where nothing can be foretold: what most workflows have."""

ErrorOf = Callable[[int], float]
"""N -> the error foretold for the grid of N steps."""


@dataclass(frozen=True)
class Forecast:
    """errors: N -> error, N rising."""

    errors: Mapping[int, float]

    def error(self, steps: int) -> float:
        """Of steps within those foretold."""
        for (n, e), (m, f) in pairwise(self.errors.items()):
            if n <= steps <= m:
                share = math.log(steps / n) / math.log(m / n)
                return math.exp((1 - share) * math.log(e) + share * math.log(f))
        return self.errors[steps]

    def fewest(self, tolerance: float) -> int | None:
        """The smallest number of steps whose error is within the tolerance."""
        steps = range(min(self.errors), max(self.errors) + 1)
        return next((n for n in steps if self.error(n) <= tolerance), None)

    @property
    def sentence(self) -> str:
        """What it comes to, in one or two sentences."""
        most = max(self.errors)
        named = [(bound, n) for bound in BOUNDS if (n := self.fewest(bound)) is not None]
        named = list({n: (bound, n) for bound, n in named}.values())[-MOST_NAMED:]
        if not named:
            return f"Even {most} steps are about {percent(self.errors[most])} off. {DOUBT}."
        (first, n), *more = named
        enough = f"{n} steps come" if n > 1 else "1 step comes"
        told = [f"{enough} within {100 * first:g} %", *(f"{m} within {100 * bound:g} %" for bound, m in more)]
        return f"{', '.join(told)} of what ever more steps draw. {DOUBT}."


def forecast(error_of: ErrorOf, tolerance: float = 0.0) -> Forecast:
    """Of ``COUNTS``, up to the first whose error is within the tolerance."""
    errors: dict[int, float] = {}
    for n in COUNTS:
        errors[n] = max(error_of(n), LEAST_ERROR)
        if errors[n] <= tolerance:
            break
    return Forecast(errors)


def draw_forecast(told: Forecast, tolerance: float) -> Image.Image:
    """The error over the number of steps, and where it comes within the tolerance: 640 pixels wide."""
    page = blank(TOP + PANEL + FOOT)
    values = [*told.errors.values(), tolerance]
    x = LinearAxis(0, max(told.errors), LEFT, WIDTH - RIGHT)
    y = LogAxis(min(values) / 1.3, max(values) * 1.3, TOP + PANEL, TOP)
    for value in x.ticks():
        page.column(x(value), TOP, TOP + PANEL, f"{value:g}")
    for value in _marks(y):
        page.level(y(value), f"{100 * value:g} %")
    page.frame(TOP, TOP + PANEL)
    page.text(WIDTH - RIGHT, TOP + PANEL + FOOT - 6, "steps", INK, "rb")
    page.text(12, TOP - 12, "error foretold", INK, "ls")
    enough = told.fewest(tolerance)
    page.curve([(LEFT, y(tolerance)), (WIDTH - RIGHT, y(tolerance))], COLOURS[1])
    within = f"{enough} steps: within {percent(tolerance)}" if enough else f"none within {percent(tolerance)}"
    page.text(WIDTH - RIGHT, TOP - 12, within, COLOURS[1], "rs")
    page.curve([(x(n), y(error)) for n, error in told.errors.items()], COLOURS[0])
    for n, error in told.errors.items():
        page.dot(x(n), y(error), COLOURS[0])
    if enough:
        page.dot(x(enough), y(told.error(enough)), COLOURS[1])
    return page.image


def _marks(y: LogAxis) -> list[float]:
    """1, 2 and 5 times the powers of ten where an axis has few decades, else the powers alone."""
    if y.high > 300 * y.low:
        return y.decades()
    first, last = math.floor(math.log10(y.low)), math.ceil(math.log10(y.high))
    marks = [part * 10.0**power for power in range(first, last + 1) for part in (1, 2, 5)]
    return [mark for mark in marks if y.low <= mark <= y.high]
