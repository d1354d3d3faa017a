# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles on disk: what was written is read, anything else is a warning and nothing."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dizzydiff.benchmarks.mutated_profiles import mutations, small_profile
from dizzydiff.stability import store as stores
from dizzydiff.stability.profile import Profile
from dizzydiff.stability.store import Store

KEY = "a model"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.save(KEY, small_profile())
    return made


def same(one: Profile | None, other: Profile) -> bool:
    return one is not None and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in stores.TENSORS
    )


def test_what_was_written_is_read(store: Store) -> None:
    read = store.load(KEY)
    assert same(read, small_profile())
    assert read is not None and (read.flow, read.calls) == (False, 26)
    assert store.load("another model") is None


def test_mutated_files_are_warned_of_and_not_used(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A hundred of the three thousand of ``bench mutated_profiles``."""
    path = store.path(KEY)
    whole = path.read_bytes()
    for name, content in mutations(whole, 100, random.Random(0)):
        caplog.clear()
        path.write_bytes(content)
        read = store.load(KEY)
        assert read is None or same(read, small_profile()), name
        assert (read is None) == any("measured anew" in record.getMessage() for record in caplog.records), (
            name
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"scalars": {"flow": 5, "calls": 26}},
        {"scalars": {"flow": False, "calls": -1}},
        {"scalars": {"flow": False}},
        {"scalars": {"flow": False, "calls": 26, "sigmas": 1}},
        {"scalars": []},
        {"sigmas": torch.tensor([1.0, 2.0, 0.5, 0.1], dtype=torch.float64)},
        {"sigmas": torch.tensor([3.0, 2.0, 0.5, 0.0], dtype=torch.float64)},
        {"states": torch.full((2, 8, 5), torch.nan, dtype=torch.float64)},
        {"denoised": torch.zeros(2, 8, 5)},
        {"denoised": torch.zeros(2, 7, 5, dtype=torch.float64)},
        {"responses": torch.zeros(2, 5, 1, 2, dtype=torch.float64)},
        {"states": torch.zeros(0, 8, 5, dtype=torch.float64)},
    ],
)
def test_a_well_formed_file_of_something_else_is_not_used(
    changes: dict, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Written with a right digest, as by another program."""
    profile = small_profile()
    tensors = {name: changes.get(name, getattr(profile, name)) for name in stores.TENSORS}
    scalars = json.dumps(changes.get("scalars", {"flow": False, "calls": 26}))
    digest = stores._digest(tensors, scalars)
    metadata = {"version": stores.VERSION, "key": KEY, "scalars": scalars, "digest": digest}
    save_file(tensors, store.path(KEY), metadata)
    assert store.load(KEY) is None
    assert "measured anew" in caplog.text


def test_a_file_larger_than_any_profile_is_not_read(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with store.path(KEY).open("r+b") as file:
        file.truncate(2**40)
    assert store.load(KEY) is None
    assert "it is larger than" in caplog.text


def test_a_folder_that_cannot_be_written_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        Store(tmp_path / "file").save(KEY, small_profile())
    assert "cannot be written" in caplog.text
