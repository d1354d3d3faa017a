# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a student is saved is looked at before it is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dizzydiff.common import files as common_files
from dizzydiff.students.adapter import Manifest
from dizzydiff.students.distill import saving
from dizzydiff.students.distill.errors import CannotSave


@pytest.mark.parametrize(
    "name",
    [
        "CON",
        "con.two",
        "nul",
        "COM1",
        "folder/AUX",
        "a\0b",
        "a\nb",
        "what?",
        'a"b',
        "a|b",
        "folder./student",
        "folder /student",
        "x" * 300,
        "ü" * 130,
        "",
        "   ",
    ],
)
def test_names_that_cannot_be_saved_are_refused_before_the_training(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotSave):
        saving.check_target(tmp_path / f"{name}.safetensors")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["student", "mine/student", "a student 2.0", "学生", "console", "x" * 200])
def test_names_that_can_be_saved_leave_no_trace(tmp_path: Path, name: str) -> None:
    saving.check_target(tmp_path / f"{name}.safetensors")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_of_the_users_own_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "models. "
    folder.mkdir()
    saving.check_target(folder / "student.safetensors")


def test_places_that_cannot_be_written_to_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "folder.safetensors").mkdir()
    for path in (tmp_path / "file" / "student.safetensors", tmp_path / "folder.safetensors"):
        with pytest.raises(CannotSave, match="Nothing was done"):
            saving.check_target(path)

    def read_only(dir: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(CannotSave, match="Permission denied"):
        saving.check_target(tmp_path / "student.safetensors")


def failing(number: int | None) -> Any:
    def fail(*arguments: Any, **named: Any) -> None:
        error = PermissionError(13, "denied")
        if number is not None:
            error.winerror = number  # type: ignore[attr-defined]
        raise error

    return fail


@pytest.mark.parametrize(
    ("number", "there", "said"),
    [
        (32, True, "It is in use"),
        (5, True, "It is in use"),
        (5, False, "Make room"),
        (None, True, "Make room"),
    ],
)
def test_a_file_is_said_to_be_in_use_where_it_is_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, there: bool, said: str
) -> None:
    path = tmp_path / "student.safetensors"
    if there:
        path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(common_files, "save_file", failing(number))
    with pytest.raises(CannotSave, match=said):
        saving.write(path, {"a": torch.zeros(1)}, {})
    assert not there or path.read_text(encoding="utf-8") == "old"


def test_a_manifest_that_says_the_same_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be in use while a student that it names is trained on."""
    manifest = Manifest(tmp_path / "m.safetensors", torch.ones(1, 3), ("one.safetensors",))
    saving.write_manifest(manifest)
    monkeypatch.setattr(common_files, "save_file", failing(32))
    saving.write_manifest(manifest)
    with pytest.raises(CannotSave):
        saving.write_manifest(Manifest(manifest.path, torch.zeros(1, 3), manifest.files))
