# SPDX-License-Identifier: GPL-3.0-or-later
"""The model of scaling, at its limits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dizzydiff.benchmarks.scaling import (
    LINKS,
    LOADS,
    Link,
    Load,
    checked,
    rounds,
    speed_up,
    table,
    unequal,
)

FREE = Link("free", math.inf, 0.0, one_host=False)
STEPS = st.integers(2, 100)


@given(STEPS, st.sampled_from(LOADS), st.sampled_from(LINKS))
def test_one_device_is_as_fast_as_one_device(steps: int, load: Load, link: Link) -> None:
    assert speed_up(1, steps, load, link) == pytest.approx(1)


@given(st.integers(1, 64), STEPS)
def test_free_links_leave_the_formula_of_the_rounds(n: int, steps: int) -> None:
    load = Load("any", 0.1, 0.01, 1e6, 1e6)
    assert rounds(n, steps) == 1 + math.ceil((steps - 1) / n)
    assert speed_up(n, steps, load, FREE) == pytest.approx(steps / rounds(n, steps))


@given(st.integers(2, 64), STEPS, st.sampled_from(LOADS))
def test_costs_never_help(n: int, steps: int, load: Load) -> None:
    limit = speed_up(n, steps, load, FREE)
    for link in LINKS:
        assert speed_up(n, steps, load, link) <= limit
        slower = Link("slower", link.bandwidth / 2, 2 * link.latency, link.one_host)
        assert speed_up(n, steps, load, slower) <= speed_up(n, steps, load, link)


def test_where_launching_is_all_the_work_one_host_gains_nothing_by_more_devices() -> None:
    load = Load("launches only", 0.01, 0.01, 0.0, 0.0)
    assert speed_up(8, 50, load, Link("one host", math.inf, 0.0, one_host=True)) < 1


def test_the_model_is_within_a_tenth_of_what_was_measured() -> None:
    points = list(checked())
    assert points
    for row in points:
        assert row["computed"] == pytest.approx(row["measured"], rel=0.1)
    assert "| tiny/teacher, 384x384 | 50 | 2 |" in table(points)


def test_unequal_devices_are_within_a_tenth_of_the_simulated_clock() -> None:
    points = list(unequal())
    assert {"1, 0.5", "1, 1, 0.5, 0.25"} <= {row["speeds"] for row in points}
    for row in points:
        assert row["computed"] == pytest.approx(row["measured"], rel=0.1)
        assert f"| {row['speeds']} |" in table(points)
