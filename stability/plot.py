# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile as a picture: stability, amplification and local error over sigma, above the points of grids.
All axes are logarithmic; high sigma, where sampling begins, is on the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..common.pictures import INK, LogAxis
from . import curves
from .drawing import COLOURS, LEFT, LINE, PALE, RIGHT, WIDTH, Page, blank
from .linearized import LinearizedModel
from .solvers import Solver

PANEL, ROW, TOP, FOOT = 200, 40, 78, 68
"""Pixels: a panel's height, a row of points, and the margins above a panel and below the last row."""
HEADROOM = 1.3
"""Of a panel's highest curve to its edge."""
MAX_RANGE = 1e6
"""Of a panel: what is smaller is cut off."""


@dataclass(frozen=True)
class Curve:
    """y: [T], of which only what is above 0 is drawn."""

    name: str
    y: Tensor


def draw(model: LinearizedModel, solver: Solver, grids: Mapping[str, Tensor]) -> Image.Image:
    """640 pixels wide, to be read in a node. grids: name -> sigmas, from top to bottom."""
    panels = [
        (
            "stability, per unit of sigma",
            [
                Curve("norm of J", curves.lipschitz(model)),
                Curve("growth", curves.one_sided_lipschitz(model)),
            ],
        ),
        (
            "errors",
            [
                Curve("amplification", curves.amplification(model)),
                Curve(f"local error of {solver.name}", curves.local_error(model, solver)),
            ],
        ),
    ]
    page = blank(len(panels) * (TOP + PANEL) + TOP + ROW * len(grids) + FOOT)
    x = LogAxis(float(model.sigmas[-1]), float(model.sigmas[0]), WIDTH - RIGHT, LEFT)
    for n, (title, lines) in enumerate(panels):
        _panel(page, x, n * (TOP + PANEL) + TOP, title, model.sigmas, lines)
    _rows(page, x, len(panels) * (TOP + PANEL) + TOP, grids)
    return page.image


def _panel(page: Page, x: LogAxis, top: int, title: str, sigmas: Tensor, lines: Sequence[Curve]) -> None:
    values = torch.cat([curve.y[curve.y > 0] for curve in lines])
    high = float(values.max()) * HEADROOM
    y = LogAxis(max(float(values.min()) / HEADROOM, high / MAX_RANGE), high, top + PANEL, top)
    for value in y.decades():
        page.level(y(value), f"{value:g}")
    page.frame(top, top + PANEL)
    page.text(LEFT, top - 10 - LINE, title, INK, "ls")
    right = WIDTH - RIGHT
    for curve, colour in reversed(list(zip(lines, COLOURS, strict=False))):
        page.text(right, top - 10, curve.name, colour, "rs")
        right -= page.length(curve.name) + 24
        run: list[tuple[float, float]] = []
        for sigma, value in zip(sigmas.tolist(), curve.y.tolist(), strict=True):
            if value >= y.low:
                run.append((x(sigma), y(value)))
                continue
            page.curve(run, colour)
            run = []
        page.curve(run, colour)


def _rows(page: Page, x: LogAxis, top: int, grids: Mapping[str, Tensor]) -> None:
    bottom = top + ROW * len(grids)
    for value in x.decades():
        page.column(x(value), top, bottom, f"{value:g}")
    page.text(LEFT, top - 10, "points of the grids", INK, "ls")
    page.text(WIDTH - RIGHT, bottom + FOOT - 6, "sigma", INK, "rb")
    for row, (name, grid) in enumerate(grids.items()):
        y, colour = top + ROW * (row + 0.5), COLOURS[row % len(COLOURS)]
        page.pen.line([(LEFT, y), (WIDTH - RIGHT, y)], PALE)
        page.text(LEFT - 10, y, name, colour, "rm")
        for sigma in grid.tolist():
            if x.low * (1 - 1e-4) <= sigma <= x.high * (1 + 1e-4):
                page.dot(x(sigma), y, colour)
