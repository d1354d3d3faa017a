# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing the files of Distill Guidance: adapters, half-trained or finished, and manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.files import write_safetensors
from ..adapter import ADAPTER_FORMAT, CENTRES, MANIFEST_FORMAT, Manifest
from .errors import CannotSave


def adapter_metadata(
    *,
    teacher: str,
    teacher_name: str,
    time_layer: str,
    scales: tuple[float, float],
    plan: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The metadata of a new adapter. teacher: its fingerprint. plan: what is trained, as plain values."""
    return {
        "format": ADAPTER_FORMAT,
        "teacher": teacher,
        "teacher_name": teacher_name,
        "time_layer": time_layer,
        "guidance_weight": "g - 1",
        "guidance_scale_range": list(scales),
        "plan": dict(plan),
        "versions": dict(versions),
    }


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Replace ``path`` when everything is written; raises CannotSave and leaves it as it was otherwise."""
    try:
        write_safetensors(path, tensors, {key: json.dumps(value) for key, value in metadata.items()})
    except Exception as error:
        raise CannotSave(
            f"{path}: could not be written ({error}). A file of this name from before is untouched. Make "
            "room or choose another folder, and run again."
        ) from error


def write_manifest(manifest: Manifest) -> None:
    """Raises CannotSave."""
    metadata = {"format": MANIFEST_FORMAT, "files": list(manifest.files)}
    write(manifest.path, {CENTRES: manifest.centres}, metadata)
