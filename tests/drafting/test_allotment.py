# SPDX-License-Identifier: GPL-3.0-or-later
"""Which device evaluates what: never slower than the fastest alone, the first states soonest, and equal
devices in turn.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dizzydiff.drafting.allotment import VERIFIED_USE, allot, calls_a_round, speed_class

classes = st.integers(-6, 6).map(lambda k: 2.0 ** (k / 2))
unequal = st.lists(classes, min_size=2, max_size=8)
widths = st.integers(0, 12)
uses = st.sampled_from((VERIFIED_USE, 1.0))


@given(st.integers(1, 8), classes, widths, uses, st.booleans())
def test_equal_devices_take_states_in_turn(
    count: int, speed: float, width: int, use: float, far: bool
) -> None:
    found = allot([speed] * count, width=width, use=use, far=far)
    assert found.near == tuple(i % count for i in range(width or count)) and found.far == ()


@given(unequal, widths, uses, st.booleans())
def test_unequal_devices_are_never_slower_than_the_fastest_alone(
    speeds: list[float], width: int, use: float, far: bool
) -> None:
    assume(len(set(speeds)) > 1)
    found = allot(speeds, width=width, use=use, far=far)
    assert 1.0 - 1e-9 <= found.gain <= sum(speeds) / max(speeds) * 1.2
    if width:
        assert len(found.near) + len(found.far) <= width


@given(unequal, uses, st.booleans())
def test_a_round_waits_for_no_near_state_and_far_ones_are_there_when_they_count(
    speeds: list[float], use: float, far: bool
) -> None:
    assume(len(set(speeds)) > 1)
    found, fastest = allot(speeds, use=use, far=far), max(speeds)
    for device in found.near:
        assert found.near.count(device) * fastest / speeds[device] <= found.length + 1e-6
    for each in found.far:
        assert each.device not in found.near and each.rounds > 1 and each.ahead >= len(found.near)
        assert fastest / speeds[each.device] <= each.rounds * found.length + 1e-6


@given(unequal, uses, st.booleans())
def test_the_states_needed_soonest_are_on_devices_that_end_soonest(
    speeds: list[float], use: float, far: bool
) -> None:
    assume(len(set(speeds)) > 1)
    done, ends = dict.fromkeys(range(len(speeds)), 0), []
    for device in allot(speeds, use=use, far=far).near:
        done[device] += 1
        ends.append(done[device] / speeds[device])
    assert ends == sorted(ends)


@given(unequal, classes, uses, st.booleans())
@example([2**1.5] * 4 + [4.0, 2**-2.5, 2**-3], 2**0.5, 1.0, False)
def test_only_the_ratios_of_speeds_count(speeds: list[float], unit: float, use: float, far: bool) -> None:
    one, other = (allot([speed * by for speed in speeds], use=use, far=far) for by in (1.0, unit))
    assert one.used == other.used and one.near == other.near and one.far == other.far


def test_where_every_state_counts_a_fast_device_takes_two_while_a_slow_one_takes_one() -> None:
    found = allot([1.0, 0.5])
    assert found.near == (0, 0, 1) and found.gain == pytest.approx(1.5)


def test_a_slow_device_drafts_far_ahead_and_a_very_slow_one_nothing() -> None:
    found = allot([1.0, 0.5], use=VERIFIED_USE, far=True)
    assert found.near == (0,) and [(far.device, far.rounds, far.ahead) for far in found.far] == [(1, 2, 2)]
    assert allot([1.0, 0.25], use=VERIFIED_USE, far=True).used == {0}
    assert allot([0.25, 1.0], use=VERIFIED_USE, far=True).used == {1}, "wherever it stands"


@given(st.floats(0.05, 20))
def test_classes_are_near_what_was_measured(ratio: float) -> None:
    assert abs(math.log2(speed_class(ratio) / ratio)) <= 0.25 + 1e-9
    assert speed_class(speed_class(ratio)) == speed_class(ratio)


@given(st.floats(0.85, 1.18))
def test_devices_that_are_hardly_apart_are_equal(ratio: float) -> None:
    assert speed_class(ratio) == 1.0


@given(st.integers(1, 30), st.floats(0.1, 0.95))
def test_drafts_saturate(width: int, use: float) -> None:
    assert calls_a_round(1, use) == pytest.approx(1.0)
    assert calls_a_round(width, use) < calls_a_round(width + 1, use) + 1e-12 <= 1 / (1 - use) + 1e-9
    assert calls_a_round(width, 1.0) == width
