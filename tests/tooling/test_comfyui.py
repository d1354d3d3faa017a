# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from devtools.comfyui import RELEASE, ComfyUINotFound, locate


def make_comfyui(path: Path) -> Path:
    (path / "comfy").mkdir(parents=True)
    for name in ("main.py", "folder_paths.py", "requirements.txt"):
        (path / name).touch()
    return path


def test_comfyui_path_wins_over_the_enclosing_one(tmp_path: Path) -> None:
    enclosing, named = make_comfyui(tmp_path / "a"), make_comfyui(tmp_path / "b")
    clone = enclosing / "custom_nodes" / "pack"
    chosen = locate(clone, {"COMFYUI_PATH": str(named)})
    assert (chosen.path, chosen.own) == (named, True)


def test_the_comfyui_that_holds_the_clone_is_used(tmp_path: Path) -> None:
    enclosing = make_comfyui(tmp_path / "a")
    chosen = locate(enclosing / "custom_nodes" / "pack", {})
    assert (chosen.path, chosen.own) == (enclosing, True)


def test_without_a_comfyui_the_release_inside_the_clone_is_used(tmp_path: Path) -> None:
    chosen = locate(tmp_path / "custom_nodes" / "pack", {})
    assert chosen.path.is_relative_to(tmp_path / "custom_nodes" / "pack")
    assert RELEASE in chosen.path.name
    assert not chosen.own


def test_a_wrong_comfyui_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ComfyUINotFound, match=r"COMFYUI_PATH.*nowhere"):
        locate(tmp_path, {"COMFYUI_PATH": str(tmp_path / "nowhere")})
