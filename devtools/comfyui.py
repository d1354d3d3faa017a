# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ComfyUI to work with: the user's own where there is one, else a pinned release kept outside git."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RELEASE = "0.30.0"
"""ComfyUI release used when the user has none; the sdist below carries its complete tree."""


class ComfyUINotFound(Exception):
    """No ComfyUI where one was said or expected to be."""


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI tree; ``own`` says that it is the user's, which is read and run but never written to."""

    path: Path
    own: bool


def is_comfyui(path: Path) -> bool:
    """Whether a folder is the root of a ComfyUI tree."""
    return all((path / name).exists() for name in ("main.py", "folder_paths.py", "comfy", "requirements.txt"))


def locate(root: Path, environ: Mapping[str, str] = os.environ) -> ComfyUI:
    """The ComfyUI of a clone at ``root``: ``COMFYUI_PATH``, else the one whose custom_nodes holds the clone, else the release.

    The release need not be there yet. Raises :class:`ComfyUINotFound` if ``COMFYUI_PATH`` names something else.
    """
    if given := environ.get("COMFYUI_PATH"):
        path = Path(given).expanduser().resolve()
        if not is_comfyui(path):
            raise ComfyUINotFound(f"COMFYUI_PATH is {given!r}, which is no ComfyUI folder (one with main.py and comfy/). Mend or unset it.")
        return ComfyUI(path, own=True)
    if root.parent.name == "custom_nodes" and is_comfyui(root.parent.parent):
        return ComfyUI(root.parent.parent, own=True)
    return ComfyUI(root / ".dev" / f"ComfyUI-{RELEASE}", own=False)
