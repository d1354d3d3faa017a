# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import json
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

SHORT_STEM = 32
"""Letters of a name that its unfinished file keeps: at most 128 bytes, so that the longest names that are
allowed have one too.
"""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` to write to. It takes the place of ``path`` when the block ends, and is
    removed when the block raises.

    What stands at ``path`` is untouched until then. The folder is made where it is missing. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name[:SHORT_STEM]}.{secrets.token_hex(4)}.part")
    try:
        unfinished.touch(exist_ok=False)
        mode = stat.S_IMODE(unfinished.stat().st_mode)
        yield unfinished
        unfinished.chmod(mode)  # writers that make a file of their own may close it to others
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Raises OSError, or SafetensorError where the disk is full."""
    with replacing(path) as unfinished:
        whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(whole, unfinished, metadata=dict(metadata))


def write_json(path: Path, value: Any) -> None:
    """Raises OSError."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
