# SPDX-License-Identifier: GPL-3.0-or-later
"""Two pictures side by side with their difference, and what there is to say about them."""

from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..common.pictures import INK
from .comparison import Comparison

PANEL, GAP, LINE = 384, 12, 24
"""Pixels: width of a picture, between pictures, of a line of text."""
GAINS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""By which a difference may be made brighter: the largest that still shows all of it."""
MOST_ROWS = 4
"""Of a batch, that are drawn."""


def draw(comparison: Comparison) -> Image.Image:
    """RGB: for each of the first rows a, b and the difference; above them the reports, below the numbers."""
    a, b = (x[:MOST_ROWS].float().cpu() for x in (comparison.a, comparison.b))
    differences = (a - b).abs()
    largest = float(differences.max())
    gain = max([gain for gain in GAINS if largest and gain * largest <= 1], default=1)
    columns = [("a", comparison.report_a, a), ("b", comparison.report_b, b)]
    columns.append((f"difference x{gain}" if gain > 1 else "difference", "", gain * differences))
    font = ImageFont.load_default(18)
    letters = PANEL // 10
    heads = [[name, *textwrap.wrap(report, letters)] for name, report, _ in columns]
    height, width = a.shape[1:3]
    tall = max(1, round(PANEL * height / width))
    top = GAP + LINE * max(map(len, heads)) + GAP
    size = (GAP + 3 * (PANEL + GAP), top + len(a) * (tall + GAP) + LINE + GAP)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    resample = Image.Resampling.LANCZOS if width > PANEL else Image.Resampling.NEAREST
    for column, (lines, (_, _, images)) in enumerate(zip(heads, columns, strict=True)):
        x = GAP + column * (PANEL + GAP)
        pen.multiline_text((x, GAP), "\n".join(lines), INK, font, spacing=LINE - 18)
        for row, image in enumerate(images):
            picture.paste(_rgb(image).resize((PANEL, tall), resample), (x, top + row * (tall + GAP)))
    pen.text((GAP, size[1] - LINE - GAP // 2), comparison.sentence, INK, font)
    return picture


def _rgb(image: Tensor) -> Image.Image:
    """Of [H, W, C]: one channel is gray, of more than three the first three count."""
    values = image.clamp(0, 1).mul(255).round().byte().numpy()
    return Image.fromarray(np.repeat(values, 3, -1) if values.shape[-1] == 1 else values[..., :3]).convert(
        "RGB"
    )
