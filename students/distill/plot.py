# SPDX-License-Identifier: GPL-3.0-or-later
"""A training as a picture: the loss of every update, and what the student draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN, THUMBNAIL = 768, 300, 64, 176
INK, PALE, LINE = (30, 30, 30), (205, 214, 226), (0, 90, 181)
MEAN_OVER = 25


def draw(
    losses: Sequence[float], total: int, borders: Sequence[int], pictures: Sequence[Image.Image] = ()
) -> Image.Image:
    """768 pixels wide: the loss (logarithmic, with its mean over 25 updates) of ``total`` updates; borders:
    where a stage ends.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT + (THUMBNAIL + 16 if pictures else 0)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    left, right, top, bottom = MARGIN, WIDTH - 16, 34, HEIGHT - 34
    values = [max(loss, 1e-12) for loss in losses] or [1.0]
    low, high = math.log(min(values)) - 0.1, math.log(max(values)) + 0.1

    def point(update: float, loss: float) -> tuple[float, float]:
        return left + (right - left) * update / max(1, total), bottom - (bottom - top) * (
            math.log(loss) - low
        ) / (high - low)

    for border in borders:
        pen.line([(point(border, values[0])[0], top), (point(border, values[0])[0], bottom)], PALE, 2)
    means = [
        sum(values[max(0, i - MEAN_OVER + 1) : i + 1]) / min(i + 1, MEAN_OVER) for i in range(len(values))
    ]
    for series, colour, width in ((values, PALE, 1), (means, LINE, 2)):
        pen.line([point(i + 1, value) for i, value in enumerate(series)], colour, width)
    pen.rectangle([left, top, right, bottom], outline=INK)
    for value in (math.exp(low), math.exp(high)):
        pen.text((left - 6, point(0, value)[1]), f"{value:.2g}", INK, font, anchor="rm")
    pen.text((left, top - 8), f"loss: {means[-1]:.3g}" if losses else "loss", LINE, font, anchor="lb")
    pen.text((right, bottom + 6), f"update {len(losses)} of {total}", INK, font, anchor="rt")
    for i, picture in enumerate(pictures[: (WIDTH - 16) // (THUMBNAIL + 12)]):
        image.paste(
            picture.convert("RGB").resize((THUMBNAIL, THUMBNAIL)), (MARGIN // 2 + i * (THUMBNAIL + 8), HEIGHT)
        )
    return image
