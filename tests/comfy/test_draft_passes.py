# SPDX-License-Identifier: GPL-3.0-or-later
"""What drafting does to latents outside the network, counted: a change that adds passes or waits shows here."""

from __future__ import annotations

import pytest

from dizzydiff.benchmarks._gpu_passes import count


@pytest.mark.parametrize(("sampler", "passes"), [("euler", 210), ("euler_ancestral", 180)])
def test_a_round_of_four_makes_few_passes_and_waits_once_a_decision(sampler: str, passes: float) -> None:
    """The host reads a value where it must decide: once a draft (is it near enough?), once a round (how to guess next)."""
    *rows, total = count((1, 4, 32, 32), sampler, 28, 4)
    reads = {row["place"]: row["host_reads"] for row in rows}
    assert total["passes"] <= passes
    assert reads["guess"] == reads["batch"] == reads["drafts"] == 0
    assert 0 < reads["verify and carry"] <= 3
    assert 0 < reads["hindsight"] <= 1
