# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that import ComfyUI: entered as soon as this folder is collected, so that test modules import it at
their top.
"""

from __future__ import annotations

from pathlib import Path

from devtools.inprocess import enter_comfyui

enter_comfyui(Path(__file__).resolve().parents[2])
