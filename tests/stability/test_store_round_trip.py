# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile on disk is the one that was measured, or none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dizzydiff.stability import store
from dizzydiff.stability.profile import Profile
from dizzydiff.stability.store import Store

KEY = "a model, quick"


def profile(flow: bool = True) -> Profile:
    """Of 2 probes at 5 levels, in 3 dimensions and 1 direction."""
    g = torch.Generator().manual_seed(0)
    states, denoised, responses = (
        torch.randn(2, *shape, generator=g, dtype=torch.float64) for shape in ((5, 3), (5, 3), (3, 1, 1))
    )
    return Profile(torch.linspace(1, 0.1, 5, dtype=torch.float64), states, denoised, responses, flow, 16)


def rewritten(path: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> None:
    """The same file with some of its tensors and metadata exchanged."""
    with safe_open(path, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}
        said = dict(file.metadata())
    save_file({**kept, **tensors}, path, {**said, **(metadata or {})})


@pytest.mark.parametrize("flow", [False, True])
def test_what_is_saved_is_loaded(tmp_path: Path, flow: bool) -> None:
    folder, saved = Store(tmp_path / "made" / "when needed"), profile(flow)
    assert folder.load(KEY) is None
    folder.save(KEY, saved)
    loaded = folder.load(KEY)
    assert loaded is not None
    assert (loaded.flow, loaded.calls) == (flow, 16)
    for name in store.TENSORS:
        assert torch.equal(getattr(loaded, name), getattr(saved, name))
    assert [each.suffix for each in folder.folder.iterdir()] == [".safetensors"]


def test_every_key_has_a_profile_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Store(tmp_path)
    folder.save(KEY, profile(True))
    assert folder.load("another") is None
    folder.save("another", profile(False))
    first, second = folder.load(KEY), folder.load("another")
    assert first is not None and second is not None
    assert (first.flow, second.flow) == (True, False)
    assert not caplog.records


@pytest.mark.parametrize("metadata", [{"version": "1"}, {"key": "another"}])
def test_a_file_of_another_version_or_key_is_measured_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metadata: dict[str, str]
) -> None:
    folder = Store(tmp_path)
    folder.save(KEY, profile())
    rewritten(folder.path(KEY), metadata)
    with caplog.at_level(logging.WARNING):
        assert folder.load(KEY) is None
    assert "another version" in caplog.text and str(folder.path(KEY)) in caplog.text


@pytest.mark.parametrize("name", ["sigmas", "states", "denoised", "responses"])
def test_numbers_that_were_not_written_are_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = Store(tmp_path)
    folder.save(KEY, profile())
    rewritten(folder.path(KEY), **{name: getattr(profile(), name) * 2})
    with caplog.at_level(logging.WARNING):
        assert folder.load(KEY) is None
    assert "cannot be read" in caplog.text and "measured anew" in caplog.text


@pytest.mark.parametrize(
    "metadata", [{"scalars": '{"flow": false, "calls": 16}'}, {"scalars": '{"flow": true, "calls": 17}'}]
)
def test_a_kind_or_cost_that_was_not_written_is_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metadata: dict[str, str]
) -> None:
    folder = Store(tmp_path)
    folder.save(KEY, profile())
    rewritten(folder.path(KEY), metadata)
    with caplog.at_level(logging.WARNING):
        assert folder.load(KEY) is None
    assert "does not hold what was written" in caplog.text


@pytest.mark.parametrize("lost", ["scalars", "digest"])
def test_a_file_that_lacks_a_part_is_measured_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    folder = Store(tmp_path)
    folder.save(KEY, profile())
    with safe_open(folder.path(KEY), "pt") as file:
        tensors, said = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())
    del said[lost]
    save_file(tensors, folder.path(KEY), said)
    with caplog.at_level(logging.WARNING):
        assert folder.load(KEY) is None
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_a_damaged_file_is_measured_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    folder = Store(tmp_path)
    folder.save(KEY, profile())
    folder.path(KEY).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert folder.load(KEY) is None
    assert "cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").touch()
    with caplog.at_level(logging.WARNING):
        Store(tmp_path / "a file").save(KEY, profile())
    assert "cannot be written" in caplog.text
