# SPDX-License-Identifier: GPL-3.0-or-later
"""Drafts under what other packs put round a model: the picture is the plain sampler's, or words say why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dizzydiff.benchmarks._compositions import Composition, compositions
from dizzydiff.benchmarks.composed import measure
from dizzydiff.benchmarks.networks.families import NETWORKS
from dizzydiff.benchmarks.networks.subject import Subject, make

NO_EFFECT = {"nothing", "sampler that hides its last step"}
"""Graphs that are meant to draw what the bare model does."""


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_device() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def transformer() -> Subject:
    return make(NETWORKS["Flux"])


@pytest.mark.parametrize("graph", compositions(), ids=lambda graph: graph.name)
def test_a_graph_is_drafted_right_or_stands_aside_in_words(graph: Composition, transformer: Subject) -> None:
    rows = list(measure(transformer, graph))
    for row in rows:
        assert "effect" in row, row["verdict"]
        assert row["effect"] > 1e-3 or graph.name in NO_EFFECT, "it would prove nothing"
        assert "failed" not in row, row
        assert row["verdict"] != "stands aside: without a word"
