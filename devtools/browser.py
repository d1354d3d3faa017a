# SPDX-License-Identifier: GPL-3.0-or-later
"""The system's Chromium, which the browser tests drive: found, or installed where that can be done."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .process import SetupFailed, run_logged, say

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    "no Chromium was found. Install it (Debian, Ubuntu: apt-get install chromium), or set CHROMIUM to "
    "its path."
)


def find() -> Path | None:
    """``CHROMIUM`` where that is set, else the first of :data:`NAMES` on PATH."""
    given = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    return Path(given) if given else None


def provide(log: Path) -> Path | None:
    """A Chromium, installed by apt-get where there is none and we may; None, with the reason said, where that
    does not work.
    """
    if found := find():
        return found
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        say("installing Chromium for the browser tests")
        try:
            run_logged(["apt-get", "update"], log)
            run_logged(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"], log)
        except SetupFailed as failure:
            say(f"Chromium could not be installed. {failure}")
    return find()
