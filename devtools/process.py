# SPDX-License-Identifier: GPL-3.0-or-later
"""Running other programs so that their failure can be understood."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "COMFY_NO_UPDATE_CHECK": "1"}
"""Environment in which nothing calls home."""
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV")
"""What another environment may have set; ComfyUI's main.py needs its own folder on sys.path."""


class SetupFailed(Exception):
    """The environment could not be made; the message says what was tried, and where to read more."""


class ProgramFailed(Exception):
    """A program ended with another exit status than 0; the message ends with what it printed."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment made offline, without another environment's Python paths."""
    return (
        {name: value for name, value in os.environ.items() if name not in FOREIGN}
        | OFFLINE
        | dict(extra or {})
    )


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, indented."""
    return "\n".join(
        f"    {line}" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    )


def run_logged(command: Sequence[str], log: Path, show: Callable[[str], None] = lambda line: None) -> None:
    """Run a command with its output in ``log``, each line also given to ``show``; raises :class:`SetupFailed`
    if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment(),
        ) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            file.write(line)
            file.flush()
            show(line.strip())
    if process.returncode:
        failed = f"This command failed with exit status {process.returncode}:\n    {shlex.join(command)}"
        raise SetupFailed(f"{failed}\nIts log, {log}, ends:\n{tail(log)}")


def printed(
    command: Sequence[str | Path],
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    timeout: float = 300.0,
) -> str:
    """What a program prints to its standard output; raises :class:`ProgramFailed` with all that it said."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(extra),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
    )
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()
        raise ProgramFailed(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{said}")
    return done.stdout


def say(text: str, since: float | None = None) -> None:
    """Print a line of progress at once, with the seconds since a :func:`time.monotonic` moment."""
    print(
        f"[dizzydiff] {text}" + (f" ({time.monotonic() - since:.0f} s)" if since is not None else ""),
        flush=True,
    )
