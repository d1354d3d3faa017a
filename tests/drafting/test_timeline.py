# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of a run shows what the report says."""

from __future__ import annotations

from dizzydiff.drafting.report import EvaluatedState, Report
from dizzydiff.drafting.timeline import ANCHOR, UNUSED, colour, draw

REPORT = Report(
    [
        [EvaluatedState(0)],
        [EvaluatedState(1), EvaluatedState(2, 1e-4, True), EvaluatedState(3, 0.1, False), EvaluatedState(4)],
        [EvaluatedState(3), EvaluatedState(4, 1e-2, True)],
    ]
)


def test_colours_go_from_near_to_far() -> None:
    near, far = colour(1e-4), colour(0.1)
    assert near[1] > near[0] and far[0] > far[1]
    assert colour(0.0) == near and colour(10.0) == far
    assert colour(1e-3) != near != colour(3e-4)


def test_every_state_has_its_cell() -> None:
    image = draw(REPORT, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"])
    assert image.width >= 1024
    shades = {shade for _, shade in image.getcolors(1 << 20)}
    assert {ANCHOR, UNUSED, colour(1e-4), colour(0.1), colour(1e-2)} <= shades


def test_the_report_counts() -> None:
    assert (REPORT.evaluations, REPORT.rejections, REPORT.largest_deviation) == (7, 1, 1e-2)
