# SPDX-License-Identifier: GPL-3.0-or-later
"""The timeline of a drafted run as a picture: rounds from left to right, the states of a round from top to
bottom.
"""

from __future__ import annotations

import math
from collections import Counter

from PIL import Image, ImageDraw, ImageFont

from ..common.pictures import Font
from .report import Report, ReportedCall

CELL, GAP, MARGIN, LINE = 44, 4, 16, 26
"""Pixels: of a state and between two, round the picture, and of a line of text."""
WIDTH = 640
"""Of the picture, which a node shows at half its size or more. Rounds that do not fit go on below."""
INK, PAPER, ANCHOR, UNUSED = (30, 30, 36), (250, 250, 252), (92, 104, 124), (222, 224, 230)
SCALE = ((1e-4, (38, 130, 142)), (1e-3, (94, 201, 98)), (1e-2, (253, 200, 60)), (1e-1, (214, 60, 60)))
"""Colours of deviations; between them, and beyond, on a logarithmic scale."""


def colour(deviation: float) -> tuple[int, int, int]:
    """The colour of a deviation: green where the draft was near, red where it was far."""
    place = (math.log10(max(deviation, 1e-12)) - math.log10(SCALE[0][0])) / math.log10(
        SCALE[1][0] / SCALE[0][0]
    )
    place = min(max(place, 0.0), len(SCALE) - 1.0)
    low = min(int(place), len(SCALE) - 2)
    a, b = SCALE[low][1], SCALE[low + 1][1]
    red, green, blue = (round(x + (place - low) * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _rows(report: Report) -> tuple[list[str], list[list[tuple[int, ReportedCall]]]]:
    """Names of the rows, and each round's calls with their rows: those of a device, with its speed, in the
    order in which they were drafted; a row of each device that was left out; below them what was
    interpolated.
    """
    evaluated = [[call for call in calls if not call.interpolated] for calls in report.rounds]
    between = [[call for call in calls if call.interpolated] for calls in report.rounds]
    devices = dict.fromkeys(call.device for calls in evaluated for call in calls)
    devices |= dict.fromkeys(device for device in report.speeds if device not in devices)
    names: list[str] = []
    first: dict[str, int] = {}
    for device in devices:
        first[device] = len(names)
        most = max(sum(call.device == device for call in calls) for calls in evaluated)
        speed = f" x{report.speeds[device]:.2g}" if device in report.speeds else ""
        if not most:
            names.append(f"{device}{speed}, left out")
        names += [f"{device}{speed}" if device else "draft" if row else "state" for row in range(most)]
    placed = []
    for calls, skipped in zip(evaluated, between, strict=True):
        taken = Counter[str]()
        cells = list(enumerate(skipped, len(names)))
        for call in calls:
            cells.append((first[call.device] + taken[call.device], call))
            taken[call.device] += 1
        placed.append(cells)
    return names + ["between"] * max(map(len, between)), placed


def draw(report: Report) -> Image.Image:
    """RGB picture of a report, 640 pixels wide."""
    names, rounds = _rows(report)
    font, small = ImageFont.load_default(20), ImageFont.load_default(17)
    left = MARGIN + max(int(font.getlength(name)) for name in names) + MARGIN
    title = [f"{report.calls} predictions in {len(report.rounds)} rounds, {report.rejections} drafts dropped"]
    if report.interpolations:
        title.append(f"{report.interpolations} calls skipped (between)")
    columns = max(1, (WIDTH - left - MARGIN) // CELL)
    bands = [rounds[first : first + columns] for first in range(0, len(rounds), columns)]
    band = len(names) * CELL + MARGIN
    top = MARGIN + LINE * len(title)
    legend = _legend(small)
    image = Image.new("RGB", (WIDTH, top + band * len(bands) + LINE * len(legend) + MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    for row, text in enumerate(title):
        pen.text((MARGIN, MARGIN - 4 + LINE * row), text, INK, font)
    for number, part in enumerate(bands):
        _band(pen, (left, top + number * band), names, part, (font, small))
    for row, entries in enumerate(legend):
        _entries(pen, top + band * len(bands) + LINE * row, entries, small)
    return image


def _band(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    names: list[str],
    rounds: list[list[tuple[int, ReportedCall]]],
    fonts: tuple[Font, Font],
) -> None:
    """Some rounds beside one another, and the names of their rows. corner: of the first round."""
    left, top = corner
    for row, name in enumerate(names):
        pen.text((MARGIN, top + row * CELL + CELL // 2), name, INK, fonts[0], anchor="lm")
    for column, cells in enumerate(rounds):
        first = min((state for _, state in cells), key=lambda state: state.call)
        anchor = None if first.interpolated else first
        for row, state in cells:
            x, y = left + column * CELL, top + row * CELL
            begun = max(left, x - CELL * (state.rounds - 1))
            _cell(pen, (begun, y, x + CELL - GAP, y + CELL - GAP), state, state is anchor, fonts[1])


def _cell(
    pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], state: ReportedCall, anchor: bool, font: Font
) -> None:
    fill = ANCHOR if anchor else UNUSED if state.deviation is None else colour(state.deviation)
    pen.rounded_rectangle(box, 5, fill)
    if state.accepted is False:
        pen.line(((box[0] + 6, box[1] + 6), (box[2] - 6, box[3] - 6)), INK, 3)
        pen.line(((box[0] + 6, box[3] - 6), (box[2] - 6, box[1] + 6)), INK, 3)
    else:
        ink = PAPER if anchor else INK
        pen.text(
            ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2), str(state.call + 1), ink, font, anchor="mm"
        )


def _legend(font: Font) -> list[list[tuple[str, tuple[int, int, int] | None]]]:
    """What each line says: words, and the colour that they explain."""
    entries: list[tuple[str, tuple[int, int, int] | None]] = [("where the sampler stood", ANCHOR)]
    entries += [("not reached", UNUSED), *((f"draft off by {value:g}", shade) for value, shade in SCALE)]
    entries.append(("crossed out: too far off, dropped and drafted again", None))
    lines: list[list[tuple[str, tuple[int, int, int] | None]]] = [[]]
    for entry in entries:
        if sum(_length(each, font) for each in (*lines[-1], entry)) > WIDTH - 2 * MARGIN:
            lines.append([])
        lines[-1].append(entry)
    return lines


def _length(entry: tuple[str, tuple[int, int, int] | None], font: Font) -> int:
    return LINE + int(font.getlength(entry[0])) + MARGIN


def _entries(
    pen: ImageDraw.ImageDraw, top: int, entries: list[tuple[str, tuple[int, int, int] | None]], font: Font
) -> None:
    x = MARGIN
    for label, shade in entries:
        if shade is not None:
            pen.rounded_rectangle((x, top, x + 18, top + 18), 4, shade)
        pen.text((x + (LINE if shade else 0), top + 9), label, INK, font, anchor="lm")
        x += _length((label, shade), font)
