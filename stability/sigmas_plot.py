# SPDX-License-Identifier: GPL-3.0-or-later
"""Any SIGMAS beside one another: sigma over the step, and a line on each above."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..common.pictures import INK, Colour, LinearAxis, LogAxis
from .drawing import COLOURS, LEFT, LINE, RIGHT, WIDTH, Page, blank
from .errors import BadSigmas

PANEL, TOP, FOOT, FLOOR = 400, 24, 68, 44
"""Pixels: of the panel, above and below it, and from its lowest positive sigma down to that of 0."""
LOG_FROM = 100.0
"""Largest over smallest sigma, from which the axis is logarithmic."""
MOST_DOTS = 60
"""Steps of a grid whose points are marked."""
HALO = 4
"""Pixels."""
Axis = Callable[[float], float]


@dataclass(frozen=True)
class Grid:
    """sigmas [N + 1] in float64, not negative: falling, rising, or of one entry or none. note: what is said
    of them, if anything.
    """

    name: str
    sigmas: Tensor
    note: str = ""

    @property
    def line(self) -> str:
        steps = len(self.sigmas) - 1
        told = {-1: "empty, no step", 0: "one sigma, no step", 1: "1 step"}.get(steps, f"{steps} steps")
        return f"{self.name}: {', '.join(each for each in (told, self.note) if each)}"


def read_sigmas(name: str, value: Any) -> Tensor:
    """SIGMAS as float64 [N + 1] on the host. Raises BadSigmas where they cannot be drawn."""
    try:
        sigmas = torch.as_tensor(value).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadSigmas(f"{name}: got {type(value).__name__}; expected SIGMAS, a row of numbers.") from error
    if sigmas.ndim != 1:
        raise BadSigmas(f"{name}: got a tensor of shape {list(sigmas.shape)}; expected one row of sigmas.")
    bad = ~sigmas.isfinite() | (sigmas < 0)
    if bad.any():
        at = int(bad.nonzero()[0])
        raise BadSigmas(
            f"{name}: sigma {at} is {float(sigmas[at])}; expected numbers from 0 up. The node that made them "
            "gets settings that it cannot work with."
        )
    return sigmas


def draw_sigmas(grids: Sequence[Grid]) -> Image.Image:
    """640 pixels wide, to be read in a node: the step on the horizontal axis, sigma on the upright one,
    which is logarithmic where sigmas span ``LOG_FROM``; 0 then has a line of its own below.
    """
    top = TOP + LINE * len(grids)
    page = blank(top + PANEL + FOOT)
    for row, grid in enumerate(grids):
        page.text(12, TOP + LINE * (row + 0.5) - 8, grid.line, _colour(row), "lm")
    drawn = [(row, grid) for row, grid in enumerate(grids) if len(grid.sigmas)]
    steps = max((len(grid.sigmas) - 1 for _, grid in drawn), default=0)
    x = LinearAxis(0, max(1, steps), LEFT, WIDTH - RIGHT)
    for value in x.ticks():
        if value == round(value):
            page.column(x(value), top, top + PANEL, f"{value:g}")
    page.text(WIDTH - RIGHT, top + PANEL + FOOT - 6, "step", INK, "rb")
    values = torch.cat([grid.sigmas for grid in grids]) if grids else torch.zeros(0)
    y = _sigma_axis(page, top, values)
    page.frame(top, top + PANEL)
    page.text(WIDTH - RIGHT - 12, top + 8, "sigma", INK, "ra")
    for row, grid in drawn:
        points = [(x(i), y(sigma)) for i, sigma in enumerate(grid.sigmas.tolist())]
        page.curve(points, _colour(row))
        for point in points if len(points) <= MOST_DOTS else ():
            page.dot(*point, _colour(row))
    for place, (row, grid) in enumerate(drawn):
        _label(page, x, y, grid, (place + 0.6) / (len(drawn) + 0.2), _colour(row))
    return page.image


def _sigma_axis(page: Page, top: int, values: Tensor) -> Axis:
    positive = values[values > 0]
    high = float(positive.max()) if len(positive) else 1.0
    low = float(positive.min()) if len(positive) else 1.0
    bottom = top + PANEL - 12
    if high < LOG_FROM * low:
        linear = LinearAxis(0, high, bottom, top + 12)
        for value in linear.ticks():
            page.level(linear(value), f"{value:g}")
        return linear
    floor = bottom if not bool((values == 0).any()) else bottom - FLOOR
    log = LogAxis(low, high, floor, top + 12)
    decades = log.decades()
    for value in decades[:: math.ceil(len(decades) / 6)]:
        page.level(log(value), f"{value:g}")
    if floor < bottom:
        page.level(bottom, "0")
    return lambda sigma: log(sigma) if sigma > 0 else bottom


def _label(page: Page, x: Axis, y: Axis, grid: Grid, share: float, colour: Colour) -> None:
    """The name at the curve, so far along it, on the side where it does not run."""
    i = round(share * (len(grid.sigmas) - 1))
    sigmas = grid.sigmas.tolist()
    right = x(i) + 14 + page.length(grid.name) < WIDTH - RIGHT
    rising = sigmas[-1] > sigmas[0]
    anchor = ("l" if right else "r") + ("a" if rising == right and y(sigmas[i]) < y(0) - 40 else "d")
    page.text(x(i) + (14 if right else -14), y(sigmas[i]), grid.name, colour, anchor, HALO)


def _colour(row: int) -> Colour:
    return COLOURS[row % len(COLOURS)]
