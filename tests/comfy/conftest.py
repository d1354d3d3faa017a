# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that import ComfyUI: entered as soon as this folder is collected, so that test modules import it at
their top.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from devtools.inprocess import enter_comfyui

enter_comfyui(Path(__file__).resolve().parents[2])


TINY = Path(__file__).resolve().parents[2] / "tiny"


@pytest.fixture(autouse=True)
def devices_of_equal_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine does: between two looks of a thread at the clock passes as much in each."""
    from dizzydiff.drafting.sampler import DraftRefine

    looks = defaultdict[int, Iterator[int]](itertools.count)
    named = DraftRefine.__init__.__kwdefaults__
    assert named
    monkeypatch.setitem(named, "clock", lambda: float(next(looks[threading.get_ident()])))


@pytest.fixture(scope="module")
def one_thread_a_device() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clip() -> Any:
    from dizzydiff.students.pipeline import load_clip

    return load_clip(TINY, [])


@pytest.fixture(scope="module")
def prompts(clip: Any) -> tuple[list, list]:
    """Of a large red circle, and of nothing."""
    texts = ("a large red circle on white", "")
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts)
    return positive, negative


@pytest.fixture(scope="module")
def teacher() -> Any:
    from dizzydiff.students.loader import Source, load_unet

    return load_unet(Source(TINY / "teacher", "tiny/teacher"))
