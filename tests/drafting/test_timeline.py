# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of a run shows what the report says."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dizzydiff.drafting.report import Report, ReportedCall
from dizzydiff.drafting.timeline import ANCHOR, INK, UNUSED, WIDTH, colour, draw

REPORT = Report(
    [
        [ReportedCall(0)],
        [ReportedCall(1), ReportedCall(2, 1e-4, True), ReportedCall(3, 0.1, False), ReportedCall(4)],
        [ReportedCall(3), ReportedCall(4, 1e-2, True)],
    ]
)


def test_colours_go_from_near_to_far() -> None:
    near, far = colour(1e-4), colour(0.1)
    assert near[1] > near[0] and far[0] > far[1]
    assert colour(0.0) == near and colour(10.0) == far
    assert colour(1e-3) != near != colour(3e-4)


def test_every_state_has_its_cell() -> None:
    image = draw(REPORT)
    assert image.width == WIDTH
    shades = {shade for _, shade in image.getcolors(1 << 20)}
    assert {ANCHOR, UNUSED, colour(1e-4), colour(0.1), colour(1e-2)} <= shades


def box(image: Image.Image, shade: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of all that has a colour."""
    rows, columns = np.nonzero((np.asarray(image) == shade).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_rounds_go_from_left_to_right_and_states_of_a_round_from_top_to_bottom() -> None:
    """Told by colours that the legend has not."""
    first, second, third = 3e-4, 3e-2, 3e-3
    report = Report(
        [
            [ReportedCall(0), ReportedCall(1, first, True), ReportedCall(2, second, False)],
            [ReportedCall(2), ReportedCall(3, third, True)],
        ]
    )
    image = draw(report)
    upper, lower, later = (box(image, colour(deviation)) for deviation in (first, second, third))
    assert (upper[0], upper[2]) == (lower[0], lower[2]), "one round, one column"
    assert upper[3] < lower[1], "below one another, apart"
    assert (upper[1], upper[3]) == (later[1], later[3]), "second states share a row"
    assert upper[2] < later[0], "the next round stands to the right, apart"
    row = lower[1] - upper[1]
    anchor = image.getpixel((upper[0] + 8, upper[1] + 4 - row))
    assert anchor == ANCHOR, "where the sampler stood is on top"


def test_a_device_keeps_its_rows_and_one_that_is_left_out_has_no_more() -> None:
    """The first draft of a device of two states a round, and the only one that is left in the round after."""
    report = Report(
        [
            [ReportedCall(0, device="a"), ReportedCall(1, 3e-4, True, device="b")],
            [
                ReportedCall(2, device="a"),
                ReportedCall(3, 3e-3, True, device="b"),
                ReportedCall(4, 3e-2, True, device="a"),
            ],
            [ReportedCall(5, device="a"), ReportedCall(6, 2e-2, True, device="a")],
        ]
    )
    image = draw(report)
    on_b, later_on_b, second_on_a, alone = (
        box(image, colour(deviation)) for deviation in (3e-4, 3e-3, 3e-2, 2e-2)
    )
    assert (on_b[1], on_b[3]) == (later_on_b[1], later_on_b[3])
    assert second_on_a[3] < on_b[1], "the main device's rows are on top"
    assert (alone[1], alone[3]) == (second_on_a[1], second_on_a[3])


def test_every_round_of_a_long_run_is_in_the_picture() -> None:
    rounds = [[ReportedCall(n), ReportedCall(n + 1, 5e-2, True)] for n in range(100)]
    rounds[-1][1] = ReportedCall(100, 2e-4, True)
    image = draw(Report(rounds))
    left, top, right, bottom = box(image, colour(2e-4))
    assert right - left >= 40 and bottom - top >= 40
    assert image.width == WIDTH and right < WIDTH and bottom < image.height


def test_what_was_dropped_is_crossed_out() -> None:
    near, far = ReportedCall(2, 2e-4, True), ReportedCall(3, 5e-2, False)
    image = draw(Report([[ReportedCall(0)], [ReportedCall(1), near, far]]))
    for off, crossed in ((2e-4, False), (5e-2, True)):
        left, top, right, bottom = box(image, colour(off))
        x, y = (3 * left + right) // 4, (3 * top + bottom) // 4  # a quarter of the way along its diagonal
        assert bool((np.asarray(image)[y - 3 : y + 4, x - 3 : x + 4] == INK).all(-1).any()) == crossed


def test_a_call_that_was_left_out_is_shown_below_those_that_were_evaluated() -> None:
    between = ReportedCall(1, 2e-3, True, interpolated=True)
    report = Report([[ReportedCall(0)], [between, ReportedCall(2, 2e-2, True)]])
    image = draw(report)
    assert box(image, colour(2e-3))[1] > box(image, colour(2e-2))[3]
    assert (report.evaluations, report.interpolations, report.largest_deviation) == (2, 1, 2e-2)


def test_the_report_counts() -> None:
    assert (REPORT.evaluations, REPORT.rejections, REPORT.largest_deviation) == (7, 1, 1e-2)
    assert (REPORT.calls, REPORT.numbers["rounds"], REPORT.numbers["dropped"]) == (5, 3, 1)


def test_a_far_draft_spans_the_rounds_that_it_took() -> None:
    rounds = [[ReportedCall(n, device="a")] for n in range(4)]
    rounds[1].append(ReportedCall(2, 3e-3, True, device="a"))
    rounds[3].append(ReportedCall(4, 3e-4, True, device="b", rounds=2))
    image = draw(Report(rounds, speeds={"a": 1.0, "b": 0.5}))
    one, two = box(image, colour(3e-3)), box(image, colour(3e-4))
    assert two[2] - two[0] > 1.9 * (one[2] - one[0])
    assert two[0] > one[2], "from the third round on"


def test_a_device_that_is_left_out_has_a_row_without_states() -> None:
    rounds = [[ReportedCall(0, device="a")], [ReportedCall(1, device="a")]]
    without, with_it = (draw(Report(rounds, speeds=speeds)) for speeds in ({"a": 1.0}, {"a": 1.0, "b": 0.25}))
    assert with_it.height > without.height
    cells = [box(image, ANCHOR)[1] for image in (without, with_it)]
    assert cells[0] == cells[1]
