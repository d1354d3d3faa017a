# SPDX-License-Identifier: GPL-3.0-or-later
"""Pillow pictures as ComfyUI's IMAGE, and what plots with logarithmic axes share."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Colour = tuple[int, int, int]
INK: Colour = (30, 30, 30)
MARGIN, LINE, LETTER = 40, 44, 10
"""Pixels round a text, of a line, and of a letter's width."""


def image_of(picture: Image.Image) -> Tensor:
    """An RGB picture as IMAGE: [1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def picture_of_text(text: str, width: int = 640) -> Image.Image:
    """What is to be said where nothing can be drawn."""
    font = ImageFont.load_default(18)
    lines = textwrap.wrap(text, (width - 2 * MARGIN) // LETTER)
    picture = Image.new("RGB", (width, 2 * MARGIN + LINE * len(lines)), "white")
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + LINE * (row + 0.5)), line, INK, font, anchor="lm")
    return picture


@dataclass(frozen=True)
class LogAxis:
    """Positions in pixels on a logarithmic axis: ``low`` > 0 lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + (self.end - self.start) * share

    def decades(self) -> list[float]:
        """The powers of ten on the axis, ends included."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**power for power in range(first, last + 1)]


@dataclass(frozen=True)
class LinearAxis:
    """Positions in pixels: ``low`` lies at ``start``, ``high`` > ``low`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers on the axis, evenly spaced by 1, 2 or 5 times a power of ten: at most ``most``."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        gap = next(gap for part in (1, 2, 5, 10, 20) if (self.high - self.low) / (gap := part * power) < most)
        first, last = math.ceil(self.low / gap - 1e-9), math.floor(self.high / gap + 1e-9)
        return [n * gap for n in range(first, last + 1)]
