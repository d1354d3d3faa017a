# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles on disk, so that a model is measured once."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..common.files import write_safetensors
from .profile import Profile

log = logging.getLogger("dizzydiff")
VERSION = "3"
"""Of what a file holds and of how it is measured: files of another version are measured anew."""
MAX_BYTES = 2**28
"""More than the largest profile takes."""
TENSORS = ("sigmas", "states", "denoised", "responses")


@dataclass(frozen=True)
class Store:
    """A folder of profiles, one file a key. A key is any text that names all that a profile depends on."""

    folder: Path

    def path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def date(self, key: str) -> str:
        """The day on which the profile of a key was written, as YYYY-MM-DD."""
        return datetime.date.fromtimestamp(self.path(key).stat().st_mtime).isoformat()

    def load(self, key: str) -> Profile | None:
        """The profile of a key; None, with a warning where there is a file, if it cannot be used."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if (metadata.get("version"), metadata.get("key")) != (VERSION, key):
                    log.warning(
                        "%s was written by another version of DizzyDiff; the model is measured anew.", path
                    )
                    return None
                # Copies: a mapped file cannot be replaced on Windows.
                tensors = {name: file.get_tensor(name).clone() for name in TENSORS}
            if metadata["digest"] != _digest(tensors, metadata["scalars"]):
                raise ValueError("it does not hold what was written")
            return Profile(**tensors, **json.loads(metadata["scalars"]))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            log.warning("%s cannot be read (%s); the model is measured anew.", path, error)
            return None

    def save(self, key: str, profile: Profile) -> None:
        """Whole or not at all; a folder that cannot be written is warned of, since the profile in memory is
        as good.
        """
        path = self.path(key)
        tensors = {name: getattr(profile, name).contiguous() for name in TENSORS}
        scalars = json.dumps({"flow": profile.flow, "calls": profile.calls})
        metadata = {"version": VERSION, "key": key, "scalars": scalars, "digest": _digest(tensors, scalars)}
        try:
            write_safetensors(path, tensors, metadata)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be written (%s); the model will be measured again next time.", path, error)


def _digest(tensors: Mapping[str, Tensor], scalars: str) -> str:
    """Of what the file format itself does not check."""
    numbers = b"".join(tensors[name].numpy().tobytes() for name in TENSORS)
    return hashlib.sha256(numbers + scalars.encode()).hexdigest()
