# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from devtools.comfyui import RELEASES, ComfyUINotFound, locate


def make_comfyui(path: Path) -> Path:
    (path / "comfy").mkdir(parents=True)
    for name in ("main.py", "folder_paths.py", "requirements.txt"):
        (path / name).touch()
    return path


def test_comfyui_path_wins_over_the_enclosing_one(tmp_path: Path) -> None:
    enclosing, named = make_comfyui(tmp_path / "a"), make_comfyui(tmp_path / "b")
    clone = enclosing / "custom_nodes" / "pack"
    chosen = locate(clone, {"COMFYUI_PATH": str(named)})
    assert (chosen.path, chosen.release) == (named, None)


def test_the_comfyui_that_holds_the_clone_is_used(tmp_path: Path) -> None:
    enclosing = make_comfyui(tmp_path / "a")
    chosen = locate(enclosing / "custom_nodes" / "pack", {})
    assert (chosen.path, chosen.release) == (enclosing, None)


@pytest.mark.parametrize(
    ("named", "used"), [(None, "0.30.0"), ("", "0.30.0"), ("0.30.0", "0.30.0"), ("0.27.0", "0.27.0")]
)
def test_without_a_comfyui_a_release_inside_the_clone_is_used(
    named: str | None, used: str, tmp_path: Path
) -> None:
    chosen = locate(tmp_path / "custom_nodes" / "pack", {} if named is None else {"COMFYUI_RELEASE": named})
    assert chosen.path.is_relative_to(tmp_path / "custom_nodes" / "pack")
    assert used in chosen.path.name
    assert chosen.release == used
    assert chosen.newest == (used == "0.30.0")


def test_an_unknown_release_is_named_beside_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ComfyUINotFound, match=rf"COMFYUI_RELEASE.*0\.1\.0.*{', '.join(RELEASES)}"):
        locate(tmp_path, {"COMFYUI_RELEASE": "0.1.0"})


def test_a_wrong_comfyui_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ComfyUINotFound, match=r"COMFYUI_PATH.*nowhere"):
        locate(tmp_path, {"COMFYUI_PATH": str(tmp_path / "nowhere")})
