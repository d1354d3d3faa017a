# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pack does to latents outside the network, counted: a change that adds passes or waits shows here."""

from __future__ import annotations

import csv
import io

import pytest
import torch

from dizzydiff.benchmarks._gpu_elsewhere import elsewhere
from dizzydiff.benchmarks._gpu_passes import count
from dizzydiff.benchmarks.gpu import csv_table


@pytest.mark.parametrize(("sampler", "passes"), [("euler", 210), ("euler_ancestral", 180)])
def test_a_round_of_four_makes_few_passes_and_waits_once_a_decision(sampler: str, passes: float) -> None:
    """The host reads a value where it must decide: once a draft (is it near enough?), once a round (how to guess next)."""
    *rows, total, _ = count((1, 4, 32, 32), sampler, 28, 4)
    waits = {row["place"]: row["waits"] for row in rows}
    assert total["passes"] <= passes
    assert waits["guess"] == waits["batch"] == waits["drafts"] == 0
    assert 0 < waits["verify and carry"] <= 3
    assert 0 < waits["hindsight"] <= 1


def test_other_features_make_as_many_passes_as_the_docs_say() -> None:
    rows = {row["feature"]: row for row in elsewhere(torch.device("cpu"), quick=True)}
    update, embedding = rows["stage one: target, loss and gradient"], rows["guidance embedding"]
    assert 0 < rows["stability profile"]["passes"] <= 7
    assert 0 < update["passes"] <= 34
    assert embedding["passes"] == update["waits"] == embedding["waits"] == 0


def test_rows_of_parts_share_one_table() -> None:
    rows = [{"part": "a", "device": "x", "us": 1.5}, {"part": "b", "device": "x", "said": "one, two"}]
    read = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert read == [{"part": "a", "device": "x", "us": "1.5", "said": ""}, {"part": "b", "device": "x", "us": "", "said": "one, two"}]
