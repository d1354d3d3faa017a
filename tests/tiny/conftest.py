# SPDX-License-Identifier: GPL-3.0-or-later
"""SD's tokenizer, as ComfyUI ships it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from devtools import comfyui
from dizzydiff.tiny.recipe import tokens_of


@pytest.fixture(scope="session")
def tokens(root: Path) -> Callable[[list[str]], torch.Tensor]:
    """Captions to tokens [n, 77]."""
    folder = comfyui.locate(root).path / "comfy" / "sd1_tokenizer"
    return lambda captions: tokens_of(captions, folder)
