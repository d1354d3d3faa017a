# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile as a picture: stability, amplification and local error over sigma, above the points of grids. All
axes logarithmic.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from . import curves
from .replay import Replay

WIDTH, PANEL, ROW, LEFT, RIGHT, TOP, FOOT = 1024, 250, 44, 150, 30, 40, 60
INK, PALE = (30, 30, 30), (222, 222, 222)
COLOURS = ((0, 90, 181), (220, 50, 32), (26, 133, 80), (140, 80, 160))
TEXT, TEXT_COLUMNS = 18, 96


@dataclass(frozen=True)
class Curve:
    """y: [M], of which only what is above 0 is drawn."""

    name: str
    y: Tensor


def draw(replay: Replay, solver: str, grids: Mapping[str, Tensor]) -> Image.Image:
    """1024 pixels wide. grids: name -> sigmas, from top to bottom."""
    panels = [
        (
            "stability, per unit of sigma",
            [Curve("norm of J", curves.velocity_norm(replay)), Curve("growth", curves.growth(replay))],
        ),
        (
            "errors",
            [
                Curve("amplification to the image", curves.amplification(replay)),
                Curve(f"local error of {solver}", curves.local_error(replay, solver)),
            ],
        ),
    ]
    height = len(panels) * (TOP + PANEL) + TOP + ROW * len(grids) + FOOT
    image = Image.new("RGB", (WIDTH, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    span = (float(replay.sigmas[-1]), float(replay.sigmas[0]))
    for n, (title, lines) in enumerate(panels):
        _panel(pen, font, n * (TOP + PANEL) + TOP, title, replay.sigmas, lines, span)
    _rows(pen, font, len(panels) * (TOP + PANEL) + TOP, grids, span)
    return image


def draw_text(text: str) -> Image.Image:
    """What is to be said where nothing can be drawn, as wide as a plot."""
    lines = textwrap.wrap(text, TEXT_COLUMNS)
    image = Image.new("RGB", (WIDTH, 2 * TOP + ROW * len(lines)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    for row, line in enumerate(lines):
        pen.text((TOP, TOP + ROW * (row + 0.5)), line, INK, font, anchor="lm")
    return image


def _x(sigma: float, span: tuple[float, float]) -> float:
    """High sigma, where sampling begins, is on the left."""
    low, high = math.log(span[0]), math.log(span[1])
    return LEFT + (WIDTH - LEFT - RIGHT) * (high - math.log(sigma)) / (high - low)


def _decades(low: float, high: float) -> list[int]:
    return list(range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1))


def _panel(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    top: int,
    title: str,
    sigmas: Tensor,
    lines: Sequence[Curve],
    span: tuple[float, float],
) -> None:
    values = torch.cat([curve.y[curve.y > 0] for curve in lines])
    high = float(values.max()) * 1.3
    low = max(float(values.min()) / 1.3, high * 1e-6)

    def y_of(value: float) -> float:
        return top + PANEL * (math.log(high) - math.log(value)) / (math.log(high) - math.log(low))

    for power in _decades(low, high):
        pen.line([(LEFT, y_of(10**power)), (WIDTH - RIGHT, y_of(10**power))], PALE)
        pen.text((LEFT - 10, y_of(10**power)), f"{10**power:g}", INK, font, anchor="rm")
    pen.rectangle([LEFT, top, WIDTH - RIGHT, top + PANEL], outline=INK)
    pen.text((LEFT, top - 6), title, INK, font, anchor="lb")
    right = WIDTH - RIGHT
    for curve, colour in reversed(list(zip(lines, COLOURS, strict=False))):
        pen.text((right, top - 6), curve.name, colour, font, anchor="rb")
        right -= int(pen.textlength(curve.name, font)) + 24
        run: list[tuple[float, float]] = []
        for sigma, value in zip(sigmas.tolist(), curve.y.tolist(), strict=True):
            if value >= low:
                run.append((_x(sigma, span), y_of(value)))
                continue
            pen.line(run, colour, 3)
            run = []
        pen.line(run, colour, 3)


def _rows(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    top: int,
    grids: Mapping[str, Tensor],
    span: tuple[float, float],
) -> None:
    bottom = top + ROW * len(grids)
    for power in _decades(*span):
        x = _x(10**power, span)
        pen.line([(x, top), (x, bottom)], PALE)
        pen.text((x, bottom + 6), f"{10**power:g}", INK, font, anchor="ma")
    pen.text((LEFT, top - 6), "points of the grids", INK, font, anchor="lb")
    pen.text((WIDTH - RIGHT, bottom + FOOT - 6), "sigma", INK, font, anchor="rb")
    for row, (name, grid) in enumerate(grids.items()):
        y, colour = top + ROW * (row + 0.5), COLOURS[row % len(COLOURS)]
        pen.line([(LEFT, y), (WIDTH - RIGHT, y)], PALE)
        pen.text((LEFT - 10, y), name, colour, font, anchor="rm")
        for sigma in grid.tolist():
            if span[0] * (1 - 1e-4) <= sigma <= span[1] * (1 + 1e-4):
                x = _x(sigma, span)
                pen.ellipse([x - 6, y - 6, x + 6, y + 6], fill=colour)
