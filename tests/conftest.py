# SPDX-License-Identifier: GPL-3.0-or-later
"""How the tests meet the pack: as the package ``dizzydiff``, loaded the way ComfyUI loads it.

The clone's root stays off sys.path, where the pack's ``nodes`` would stand in for ComfyUI's.
Run by ``python3 dev.py test``, or in its environment by ``python -P -m pytest tests/students``.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from devtools.server import Server

ROOT = Path(__file__).resolve().parents[1]
SLOWER = ("e2e", "browser", "comfy")
"""Test folders that run after all others, in this order: the many short files last, so that two processes end
together.
"""

os.environ.setdefault("HF_HUB_OFFLINE", "1")

load_package = runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]
load_package("dizzydiff", ROOT)
load_package("devtools", ROOT / "devtools")


def pytest_configure() -> None:
    if ROOT in {Path(entry).resolve() for entry in sys.path}:
        raise pytest.UsageError(
            f"{ROOT} is on sys.path, where its nodes/ hides ComfyUI's nodes. Use `python -P -m pytest`."
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def slowness(item: pytest.Item) -> int:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        return SLOWER.index(folder) + 1 if folder in SLOWER else 0

    items.sort(key=slowness)


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone."""
    return ROOT


@pytest.fixture(scope="session")
def comfy_server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real ComfyUI that runs the pack on empty models folders, for all end-to-end and browser tests."""
    from devtools import comfyui, server

    tree = comfyui.locate(root).path
    if not comfyui.is_comfyui(tree):
        pytest.fail(f"No ComfyUI at {tree}: run `python3 dev.py setup`, or set COMFYUI_PATH.")
    folder = tmp_path_factory.mktemp("comfyui")
    base = comfyui.make_base(root, folder / "base")
    for kind in ("diffusion_models", "checkpoints", "diffusers"):
        (base / "models" / kind).mkdir()
    with server.running(
        Path(sys.executable), tree, base, folder / "output", folder / "comfyui.log"
    ) as running:
        yield running
