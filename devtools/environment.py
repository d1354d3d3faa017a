# SPDX-License-Identifier: GPL-3.0-or-later
"""The clone's own Python environment, ``.venv``: made once, and again only when what it is made from
changes.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .comfyui import RELEASES, ComfyUI, fetch_release, install_builder, is_comfyui, locate
from .process import SetupFailed, run_logged, say


@dataclass(frozen=True)
class Workshop:
    """What set-up gives: the clone, the ComfyUI to run, and a Python that runs it."""

    root: Path
    comfyui: ComfyUI
    python: Path

    @property
    def scratch(self) -> Path:
        """Folder outside git for logs and ComfyUI's base directory."""
        return self.root / ".dev"


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / "Scripts" / "python.exe" if sys.platform == "win32" else venv / "bin" / "python"


def requirement_files(root: Path, comfyui: ComfyUI) -> tuple[list[Path], list[Path]]:
    """(requirements, constraints) of the environment.

    A ComfyUI of any other version asks for what it needs itself; the pins of the newest release do not bind
    it.
    """
    development = root / "requirements-dev.txt"
    requirements = [comfyui.path / "requirements.txt", root / "requirements.txt", development]
    # As a constraint too, or pip downloads the newest torch before it meets the pin.
    return requirements, [development, root / "constraints.txt"] if comfyui.newest else [development]


def fingerprint(root: Path, comfyui: ComfyUI) -> str:
    """Changes with whatever the environment depends on: its requirements, its place and its Python."""
    requirements, constraints = requirement_files(root, comfyui)
    digest = hashlib.sha256(f"{root}\n{sys.version}\n".encode())
    for file in dict.fromkeys([*requirements, *constraints]):
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def _install(root: Path, comfyui: ComfyUI, python: Path, log: Path) -> None:
    requirements, constraints = requirement_files(root, comfyui)
    arguments = [argument for file in requirements for argument in ("-r", str(file))]
    arguments += [argument for file in constraints for argument in ("-c", str(file))]

    def show(line: str) -> None:
        if line.startswith("Downloading "):
            say("  " + line)
        elif line.startswith("Installing collected packages:"):
            say(f"  unpacking {line.count(',') + 1} packages ...")

    pip = [
        "-m",
        "pip",
        "install",
        "--no-compile",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    run_logged([str(python), *pip, *arguments], log, show)


def set_up(root: Path) -> Workshop:
    """Make all that is missing and say so; where nothing is, only look. An interrupted set-up goes on where
    it stopped.
    """
    comfyui = locate(root)
    venv, logs = root / ".venv", root / ".dev" / "logs"
    python, stamp = venv_python(venv), venv / "dizzydiff.stamp"
    workshop = Workshop(root, comfyui, python)
    if (
        is_comfyui(comfyui.path)
        and python.exists()
        and stamp.exists()
        and stamp.read_text(encoding="utf-8") == fingerprint(root, comfyui)
    ):
        return workshop

    start = time.monotonic()
    stamp.unlink(missing_ok=True)
    if not (venv / "complete").exists():
        say("making .venv")
        try:
            run_logged([sys.executable, "-m", "venv", "--clear", str(venv)], logs / "venv.log")
        except SetupFailed as failure:
            raise SetupFailed(
                f"{failure}\nOn Debian and Ubuntu, the package python3-venv is needed for this."
            ) from failure
        (venv / "complete").touch()
    if comfyui.release and not is_comfyui(comfyui.path):
        say(f"downloading ComfyUI into {comfyui.path.relative_to(root)}")
        install_builder(python, logs / "builder.log")
        fetch_release(comfyui.path, RELEASES[comfyui.release], python, logs / "comfyui.log")
    say("installing Python packages into .venv (several GB; a few minutes)")
    _install(root, comfyui, python, logs / "pip.log")
    stamp.write_text(fingerprint(root, comfyui), encoding="utf-8")
    say("set-up is complete", since=start)
    return workshop
