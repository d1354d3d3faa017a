# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI inside this very process, for tests and benchmarks that call it without a server."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from .comfyui import ComfyUINotFound, is_comfyui, locate


def enter_comfyui(root: Path, cpu: bool = True) -> None:
    """Make ComfyUI's modules importable, with an empty base directory that lasts as long as the process.

    Call it before anything of ComfyUI is imported: its device and folders are chosen at import.
    """
    comfyui = locate(root).path
    if not is_comfyui(comfyui):
        raise ComfyUINotFound(f"No ComfyUI at {comfyui}. Run `python3 dev.py setup`, or set COMFYUI_PATH.")
    base = tempfile.mkdtemp(prefix="dizzydiff-base-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    sys.path.insert(0, str(comfyui))

    from comfy.cli_args import args

    args.cpu = cpu
    args.base_directory = base
