# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pictures of this feature are drawn with. They are 640 pixels wide and shown in nodes of about 400,
so letters and lines are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..common.pictures import INK, Colour, Font

WIDTH, LEFT, RIGHT = 640, 120, 20
"""Pixels: of a picture, and the margins of what is plotted in it."""
TEXT_SIZE, THICK, DOT = 22, 4, 7
"""Pixels: of letters, of a curve, and the radius of a point."""
LINE = 30
"""Pixels from one line of text to the next."""
PALE: Colour = (222, 222, 222)
COLOURS: tuple[Colour, ...] = (
    (0, 90, 181),
    (220, 50, 32),
    (26, 133, 80),
    (140, 80, 160),
    (190, 110, 0),
    (0, 130, 150),
    (90, 90, 90),
    (200, 40, 130),
)
Point = tuple[float, float]


@dataclass(frozen=True)
class Page:
    """A white picture and a pen."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    font: Font

    def text(self, x: float, y: float, text: str, colour: Colour, anchor: str, halo: int = 0) -> None:
        """halo: pixels of white around the letters, where they stand on curves."""
        self.pen.text((x, y), text, colour, self.font, anchor, stroke_width=halo, stroke_fill="white")

    def length(self, text: str) -> int:
        """In pixels."""
        return int(self.pen.textlength(text, self.font))

    def curve(self, points: Sequence[Point], colour: Colour) -> None:
        self.pen.line(list(points), colour, THICK, joint="curve")

    def dot(self, x: float, y: float, colour: Colour) -> None:
        self.pen.ellipse([x - DOT, y - DOT, x + DOT, y + DOT], fill=colour)

    def frame(self, top: float, bottom: float) -> None:
        """Round what is plotted."""
        self.pen.rectangle([LEFT, top, WIDTH - RIGHT, bottom], outline=INK)

    def level(self, y: float, label: str) -> None:
        """A pale line across, with its value at the left."""
        self.pen.line([(LEFT, y), (WIDTH - RIGHT, y)], PALE)
        self.text(LEFT - 10, y, label, INK, "rm")

    def column(self, x: float, top: float, bottom: float, label: str) -> None:
        """A pale line upright, with its value below."""
        self.pen.line([(x, top), (x, bottom)], PALE)
        self.text(x, bottom + 6, label, INK, "ma")


def blank(height: int) -> Page:
    image = Image.new("RGB", (WIDTH, height), "white")
    return Page(image, ImageDraw.Draw(image), ImageFont.load_default(TEXT_SIZE))
