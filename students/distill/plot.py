# SPDX-License-Identifier: GPL-3.0-or-later
"""A training as a picture: the loss of every update, and what the student draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ...common.pictures import LogAxis

WIDTH, HEIGHT, MARGIN, THUMBNAIL = 768, 300, 64, 176
INK, PALE, LINE = (30, 30, 30), (205, 214, 226), (0, 90, 181)
MEAN_OVER = 25
"""Updates."""
SMALLEST = 1e-12
"""What a loss of 0 is drawn as."""
BEYOND = math.exp(0.1)
"""Of the extremes, that the axis reaches further."""


def draw(
    losses: Sequence[float], total: int, stage_ends: Sequence[int], pictures: Sequence[Image.Image] = ()
) -> Image.Image:
    """768 pixels wide: the loss (logarithmic, with its mean over 25 updates) of ``total`` updates;
    stage_ends: the updates at which a stage ends.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT + (THUMBNAIL + 16 if pictures else 0)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    left, right, top, bottom = MARGIN, WIDTH - 16, 34, HEIGHT - 34
    values = [max(loss, SMALLEST) for loss in losses] or [1.0]
    height = LogAxis(min(values) / BEYOND, max(values) * BEYOND, bottom, top)

    def across(update: float) -> float:
        return left + (right - left) * update / max(1, total)

    for end in stage_ends:
        pen.line([(across(end), top), (across(end), bottom)], PALE, 2)
    means = [
        sum(values[max(0, i - MEAN_OVER + 1) : i + 1]) / min(i + 1, MEAN_OVER) for i in range(len(values))
    ]
    for series, colour, width in ((values, PALE, 1), (means, LINE, 2)):
        pen.line([(across(i + 1), height(value)) for i, value in enumerate(series)], colour, width)
    pen.rectangle([left, top, right, bottom], outline=INK)
    for value in (height.low, height.high):
        pen.text((left - 6, height(value)), f"{value:.2g}", INK, font, anchor="rm")
    pen.text((left, top - 8), f"loss: {means[-1]:.3g}" if losses else "loss", LINE, font, anchor="lb")
    pen.text((right, bottom + 6), f"update {len(losses)} of {total}", INK, font, anchor="rt")
    for i, picture in enumerate(pictures[: (WIDTH - 16) // (THUMBNAIL + 12)]):
        thumbnail = picture.convert("RGB").resize((THUMBNAIL, THUMBNAIL))
        image.paste(thumbnail, (MARGIN // 2 + i * (THUMBNAIL + 8), HEIGHT))
    return image
