# SPDX-License-Identifier: GPL-3.0-or-later
"""How the tests meet the pack: as the package ``dizzydiff``, loaded the way ComfyUI loads it.

The clone's root stays off sys.path, where the pack's ``nodes`` would stand in for ComfyUI's.
Run by ``python3 dev.py test``, or in its environment by ``python -P -m pytest tests/students``.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOWER = ("comfy", "e2e")
"""Test folders that run after all others, in this order."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")

load_package = runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]
load_package("dizzydiff", ROOT)
load_package("devtools", ROOT / "devtools")


def pytest_configure() -> None:
    if ROOT in {Path(entry).resolve() for entry in sys.path}:
        raise pytest.UsageError(f"{ROOT} is on sys.path, where its nodes/ hides ComfyUI's nodes. Use `python -P -m pytest`.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def slowness(item: pytest.Item) -> int:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        return SLOWER.index(folder) + 1 if folder in SLOWER else 0

    items.sort(key=slowness)


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone."""
    return ROOT
