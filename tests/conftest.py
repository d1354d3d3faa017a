# SPDX-License-Identifier: GPL-3.0-or-later
"""How the tests meet the pack: as the package ``dizzydiff``, loaded the way ComfyUI loads it.

The clone's root stays off sys.path, where the pack's ``nodes`` would stand in for ComfyUI's.
Run by ``python3 dev.py test``, or in its environment by ``python -P -m pytest tests/students``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOWER = ("comfy", "e2e")
"""Test folders that run after all others, in this order."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _load_package(name: str, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load_package("dizzydiff", ROOT)
_load_package("devtools", ROOT / "devtools")


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
