# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found out about graphs is kept for the last few, with the objects it is about."""

from __future__ import annotations

import gc
import weakref

from dizzydiff.drafting.verdicts import KEPT, Verdict, Verdicts


class Patch:
    """Something that can be referred to weakly."""


def test_the_graphs_asked_about_last_are_known() -> None:
    verdicts = Verdicts()
    for graph in range(KEPT):
        verdicts.add(graph, Verdict(f"reason {graph}"), None)
    assert [verdicts.get(graph) for graph in range(KEPT)] == [Verdict(f"reason {g}") for g in range(KEPT)]
    assert verdicts.get(0) and verdicts.get("another") is None
    verdicts.add(1, Verdict(), None)
    for graph in ("new", "newer"):
        verdicts.add(graph, Verdict(), None)
    assert verdicts.get(2) is None and verdicts.get(3) is None, "nobody asked about them for longest"
    assert verdicts.get(0) == Verdict("reason 0") and verdicts.get(1) == Verdict()


def test_what_a_verdict_is_about_lives_as_long_as_it_is_known() -> None:
    """Its identity is part of the key, and must not become that of another object."""
    verdicts, patch = Verdicts(), Patch()
    alive = weakref.ref(patch)
    verdicts.add("graph", Verdict(), [patch])
    del patch
    gc.collect()
    assert alive() is not None
    for graph in range(KEPT):
        verdicts.add(graph, Verdict(), None)
    gc.collect()
    assert alive() is None
