# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile as a picture: stability, amplification and local error over sigma, above the points of grids.
All axes are logarithmic; high sigma, where sampling begins, is on the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..common.pictures import Font, LogAxis
from . import curves
from .linearized import LinearizedModel
from .solvers import Solver

WIDTH, PANEL, ROW, LEFT, RIGHT, TOP, FOOT = 640, 200, 40, 110, 20, 62, 60
"""Pixels: of the picture, a panel's height, a row of points, and the margins of each."""
TITLE = 28
"""From a panel's curve names up to its title, pixels."""
INK, PALE = (30, 30, 30), (222, 222, 222)
COLOURS = ((0, 90, 181), (220, 50, 32), (26, 133, 80), (140, 80, 160))
TEXT_SIZE = 18
HEADROOM = 1.3
"""Of a panel's highest curve to its edge."""
MAX_RANGE = 1e6
"""Of a panel: what is smaller is cut off."""


@dataclass(frozen=True)
class Curve:
    """y: [T], of which only what is above 0 is drawn."""

    name: str
    y: Tensor


@dataclass(frozen=True)
class _Page:
    pen: ImageDraw.ImageDraw
    font: Font
    x: LogAxis

    def text(self, x: float, y: float, text: str, colour: tuple[int, int, int], anchor: str) -> None:
        self.pen.text((x, y), text, colour, self.font, anchor=anchor)


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
                Curve("amplification to the image", curves.amplification(model)),
                Curve(f"local error of {solver.name}", curves.local_error(model, solver)),
            ],
        ),
    ]
    image, pen, font = _blank(len(panels) * (TOP + PANEL) + TOP + ROW * len(grids) + FOOT)
    page = _Page(pen, font, LogAxis(float(model.sigmas[-1]), float(model.sigmas[0]), WIDTH - RIGHT, LEFT))
    for n, (title, lines) in enumerate(panels):
        _panel(page, n * (TOP + PANEL) + TOP, title, model.sigmas, lines)
    _rows(page, len(panels) * (TOP + PANEL) + TOP, grids)
    return image


def _blank(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, Font]:
    image = Image.new("RGB", (WIDTH, height), "white")
    return image, ImageDraw.Draw(image), ImageFont.load_default(TEXT_SIZE)


def _panel(page: _Page, top: int, title: str, sigmas: Tensor, lines: Sequence[Curve]) -> None:
    values = torch.cat([curve.y[curve.y > 0] for curve in lines])
    high = float(values.max()) * HEADROOM
    y = LogAxis(max(float(values.min()) / HEADROOM, high / MAX_RANGE), high, top + PANEL, top)
    for value in y.decades():
        page.pen.line([(LEFT, y(value)), (WIDTH - RIGHT, y(value))], PALE)
        page.text(LEFT - 10, y(value), f"{value:g}", INK, "rm")
    page.pen.rectangle([LEFT, top, WIDTH - RIGHT, top + PANEL], outline=INK)
    page.text(LEFT, top - 6 - TITLE, title, INK, "lb")
    right = WIDTH - RIGHT
    for curve, colour in reversed(list(zip(lines, COLOURS, strict=False))):
        page.text(right, top - 10, curve.name, colour, "rs")
        right -= int(page.pen.textlength(curve.name, page.font)) + 24
        run: list[tuple[float, float]] = []
        for sigma, value in zip(sigmas.tolist(), curve.y.tolist(), strict=True):
            if value >= y.low:
                run.append((page.x(sigma), y(value)))
                continue
            page.pen.line(run, colour, 3)
            run = []
        page.pen.line(run, colour, 3)


def _rows(page: _Page, top: int, grids: Mapping[str, Tensor]) -> None:
    bottom = top + ROW * len(grids)
    for value in page.x.decades():
        x = page.x(value)
        page.pen.line([(x, top), (x, bottom)], PALE)
        page.text(x, bottom + 6, f"{value:g}", INK, "ma")
    page.text(LEFT, top - 6, "points of the grids", INK, "lb")
    page.text(WIDTH - RIGHT, bottom + FOOT - 6, "sigma", INK, "rb")
    for row, (name, grid) in enumerate(grids.items()):
        y, colour = top + ROW * (row + 0.5), COLOURS[row % len(COLOURS)]
        page.pen.line([(LEFT, y), (WIDTH - RIGHT, y)], PALE)
        page.text(LEFT - 10, y, name, colour, "rm")
        for sigma in grid.tolist():
            if page.x.low * (1 - 1e-4) <= sigma <= page.x.high * (1 + 1e-4):
                x = page.x(sigma)
                page.pen.ellipse([x - 6, y - 6, x + 6, y + 6], fill=colour)
