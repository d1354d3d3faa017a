# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pack does to latents outside the network, counted: a change that adds passes or waits shows
here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import comfy.samplers
import pytest
import torch

from dizzydiff.benchmarks._gpu_elsewhere import elsewhere
from dizzydiff.benchmarks._gpu_passes import END, TOTAL, count, run
from dizzydiff.benchmarks._gpu_passes import UNDRAFTED as UNDRAFTED_RUN
from dizzydiff.benchmarks.gpu import LIMIT_S, csv_table, measured
from dizzydiff.drafting.policies import Mode

SAMPLERS = [name for name in comfy.samplers.SAMPLER_NAMES if name not in ("dpm_fast", "dpm_adaptive", "ddim")]
"""Those that are drafted; ddim is euler under another name, with a first noise of its own."""


def booked(sampler: str, mode: Mode, steps: int = 28) -> dict[str, dict[str, float]]:
    """What a round of four states books at each place."""
    return {row["place"]: row for row in count((1, 4, 8, 8), sampler, steps, 4, mode)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_drafted_on_a_device_with_few_launches_and_a_wait_a_round(sampler: str) -> None:
    """Which of a round's drafts are near enough is decided at once."""
    places = booked(sampler, "verified", steps=12)
    assert 0 < places[TOTAL]["launches"] <= 20
    assert 0 < places["verify and carry"]["waits"] == places[TOTAL]["waits"] <= 1


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_drafted_sampler_waits_no_oftener_than_undrafted_where_nothing_is_decided(sampler: str) -> None:
    places = booked(sampler, "aggressive")
    assert places["verify and carry"]["waits"] == 0
    assert places["sampler"]["waits"] <= places[UNDRAFTED_RUN]["waits"]
    assert places[TOTAL]["waits"] == places["drafts"]["waits"] <= 1


def test_frozen_drafts_that_are_always_used_wait_for_nothing_but_what_the_sampler_waits_for() -> None:
    rounds, ledger = run((1, 4, 8, 8), "dpmpp_2m", 28, 4, "aggressive", frozen=True)
    assert rounds == 8
    assert {place for place, waits in ledger.waits.items() if waits} <= {"sampler", END}


@pytest.mark.parametrize(
    ("sampler", "passes"), [("euler", 127), ("dpmpp_2m", 127), ("euler_ancestral", 84), ("dpmpp_2m_sde", 84)]
)
def test_a_round_of_four_makes_as_few_passes_as_the_docs_say(sampler: str, passes: float) -> None:
    assert 0 < booked(sampler, "verified")[TOTAL]["passes"] <= passes


def test_other_features_make_as_many_passes_as_the_docs_say() -> None:
    rows = {row["feature"]: row for row in elsewhere(torch.device("cpu"), quick=True)}
    update, embedding = rows["stage one: target, loss and gradient"], rows["guidance embedding"]
    assert 0 < rows["stability profile"]["passes"] <= 7
    assert 0 < update["passes"] <= 34
    assert embedding["passes"] == update["waits"] == embedding["waits"] == 0


def test_rows_of_parts_share_one_table() -> None:
    rows = [{"part": "a", "device": "x", "us": 1.5}, {"part": "b", "device": "x", "said": "one, two"}]
    read = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert read == [
        {"part": "a", "device": "x", "us": "1.5", "said": ""},
        {"part": "b", "device": "x", "us": "", "said": "one, two"},
    ]


def test_a_part_that_fails_or_takes_too_long_costs_only_its_own_rows() -> None:
    now = 0.0

    def slow(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
        nonlocal now
        while True:
            now += LIMIT_S
            yield {"value": now}

    def broken(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
        yield {"value": 1}
        raise torch.OutOfMemoryError("no memory")

    rows = list(measured({"slow": slow, "broken": broken}, torch.device("cpu"), "x", False, lambda: now))
    assert [{k: v for k, v in row.items() if k != "device"} for row in rows] == [
        {"part": "slow", "value": LIMIT_S},
        {"part": "slow", "value": 2 * LIMIT_S},
        {"part": "slow", "cut_off_after_s": LIMIT_S},
        {"part": "broken", "value": 1},
        {"part": "broken", "failed": "OutOfMemoryError: no memory"},
    ]
