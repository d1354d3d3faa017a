# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user is told while a training runs, and of one that was stopped."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dizzydiff.students.distill.errors import UnreadablePrompts
from dizzydiff.students.distill.pace import Pace, duration, saved
from dizzydiff.students.distill.plan import Plan
from dizzydiff.students.distill.presets import CUSTOM, PRESETS, sentence, with_preset
from dizzydiff.students.distill.prompt_files import read_prompts


def test_the_remaining_time_follows_from_the_last_updates() -> None:
    ends = itertools.chain([100.0, 102.0], itertools.count(102.5, 0.5))
    pace = Pace(lambda: next(ends))
    assert pace.sentence(1, 100) is None
    assert pace.sentence(2, 100) == "2 of 100 updates, 2 s each, about 3 min left"
    for done in range(3, 60):
        told = pace.sentence(done, 100)
    assert told == "59 of 100 updates, 0.5 s each, about 20 s left"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 s"), (59.4, "59 s"), (61.0, "1 min"), (3599.0, "1 h 0 min"), (9e4, "25 h 0 min")],
)
def test_times_are_told_in_their_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_is_saved_is_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    assert saved(path, 60) is None
    save_file({"losses": torch.zeros(12)}, path)
    assert str(saved(path, 60)).startswith("mine.safetensors is saved at 12 of 60 updates: queue again")


def test_a_preset_takes_the_place_of_its_numbers_alone() -> None:
    plan = Plan(updates=7, seed=3, scales=(2.0, 5.0), steps=4)
    assert with_preset(plan, CUSTOM) is plan
    for name, preset in PRESETS.items():
        chosen = with_preset(plan, name)
        assert (chosen.updates, chosen.rank) == (preset.updates, preset.rank)
        assert (chosen.seed, chosen.scales, chosen.steps) == (3, (2.0, 5.0), 4)
        assert f"{preset.updates} updates" in sentence(name)
    good = with_preset(plan, "good")
    assert with_preset(Plan(seed=3, scales=(2.0, 5.0), steps=4), CUSTOM) == good, "the node's own numbers"


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("a.txt", "\ufeffred\n\n  green \n", ["red", "green"]),
        ("a.csv", 'id,Caption\n1,"red, large"\n2,green\n3\n', ["red, large", "green"]),
        ("a.csv", 'red\n"green\nand blue"\n', ["red", "green and blue"]),
        ("a.csv", "", []),
    ],
)
def test_prompts_are_read_from_texts_and_tables(
    tmp_path: Path, name: str, text: str, prompts: list[str]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == prompts


def test_what_holds_no_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes.txt", "missing.csv", "picture.png"):
        with pytest.raises(UnreadablePrompts, match=name):
            read_prompts(tmp_path / name)
