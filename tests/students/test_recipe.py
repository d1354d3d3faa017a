# SPDX-License-Identifier: GPL-3.0-or-later
"""How a student wants to be sampled, by what its file says."""

from __future__ import annotations

from typing import Any

import pytest

from dizzydiff.students.recipe import Recipe, recipe_of

BORDERS = [8.0, 4.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        ({"plan": {"steps": 0}}, Recipe()),
        ({"plan": {"steps": 4, "first_steps": 8, "borders": None}}, Recipe(4)),
        ({"plan": {"steps": 2, "first_steps": 4, "borders": BORDERS}}, Recipe(2, (8.0, 2.0, 0.0))),
        ({"plan": {"steps": 1, "first_steps": 4, "borders": BORDERS}}, Recipe(1, (8.0, 0.0))),
        ({}, None),
        ({"plan": "4"}, None),
        ({"plan": {"steps": "4"}}, None),
        ({"plan": {"steps": 3, "first_steps": 4, "borders": BORDERS}}, None),
        ({"plan": {"steps": 2, "first_steps": 8, "borders": BORDERS}}, None),
    ],
)
def test_a_recipe_is_read_where_a_file_has_one(settings: dict[str, Any], recipe: Recipe | None) -> None:
    assert recipe_of(settings) == recipe


def test_a_recipe_is_told_in_core_s_words() -> None:
    assert Recipe(1).sentence() == "made for 1 step: euler, simple, CFG 1"
    assert Recipe(2, (8.0, 2.0, 0.0)).sentence() == "made for 2 steps: euler, the sigmas 8, 2, 0, CFG 1"
    assert Recipe().metadata() == {"cfg": "1"}
    assert Recipe(2, (8.0, 2.0, 0.0)).metadata() == {
        "steps": "2",
        "sampler_name": "euler",
        "sigmas": "8, 2, 0",
        "cfg": "1",
    }
