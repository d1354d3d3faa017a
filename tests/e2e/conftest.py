# SPDX-License-Identifier: GPL-3.0-or-later
"""One real ComfyUI with the pack, started for all end-to-end tests and stopped after them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools import comfyui, server


@pytest.fixture(scope="session")
def comfy_server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    """A ComfyUI that runs the pack on empty models folders."""
    tree = comfyui.locate(root).path
    if not comfyui.is_comfyui(tree):
        pytest.fail(f"No ComfyUI at {tree}: run `python3 dev.py setup`, or set COMFYUI_PATH.")
    folder = tmp_path_factory.mktemp("comfyui")
    base = comfyui.make_base(root, folder / "base")
    for kind in ("diffusion_models", "checkpoints", "diffusers"):
        (base / "models" / kind).mkdir()
    with server.running(Path(sys.executable), tree, base, folder / "output", folder / "comfyui.log") as running:
        yield running


@pytest.fixture
def models(comfy_server: server.Server) -> Path:
    """The server's models folder."""
    return comfy_server.base / "models"
