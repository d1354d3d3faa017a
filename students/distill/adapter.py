# SPDX-License-Identifier: GPL-3.0-or-later
"""The student's file: one safetensors file with the adapter, the guidance projection C, and what both were
made from and how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from .. import formats
from ..errors import DamagedFile
from ..guidance import GuidanceInput, guidance_input
from .errors import CannotSave, NotAnAdapter

FORMAT = "dizzydiff student adapter 1"
SEVERAL = "dizzydiff students 1"
PROJECTION = "guidance.weight"
LAYERS = "diffusion_model."
WIDTH = 256
"""Columns of C: the width that diffusers' pipelines embed w in."""


def is_adapter(metadata: Mapping[str, Any]) -> bool:
    """Whether a file with this metadata holds an adapter, which needs its teacher, and no whole network."""
    return metadata.get("format") == FORMAT


def is_several(metadata: Mapping[str, Any]) -> bool:
    """Whether a file with this metadata is the manifest of several adapters."""
    return metadata.get("format") == SEVERAL


@dataclass(frozen=True)
class Adapter:
    """A student relative to its teacher.

    lora: the parameters ``diffusion_model.<layer>.lora_up.weight`` [out, rank] and ``.lora_down.weight``
    [rank, in].
    projection: C [F, 256]; w joins the F inputs of ``time_layer``, the first layer behind the embedding of
    time.
    settings: all of the file's metadata.
    """

    lora: Mapping[str, Tensor]
    projection: Tensor
    time_layer: str
    teacher: str
    guidance: GuidanceInput
    settings: Mapping[str, Any]

    @property
    def layers(self) -> list[str]:
        """Names of the layers that are adapted, with their leading ``diffusion_model.``."""
        return [key.removesuffix(".lora_up.weight") for key in self.lora if key.endswith(".lora_up.weight")]


def settings_of(
    teacher: str,
    teacher_name: str,
    time_layer: str,
    scales: tuple[float, float],
    plan: Mapping[str, Any],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The metadata of a new file. plan: what was trained, as plain values."""
    return {
        "format": FORMAT,
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
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            part,
            metadata={key: json.dumps(value) for key, value in metadata.items()},
        )
        part.replace(path)
    except Exception as error:
        part.unlink(missing_ok=True)
        raise CannotSave(
            f"{path}: could not be written ({error}). A file of this name from before is untouched. Make "
            f"room or choose "
            "another folder, and run again."
        ) from error


def read(path: Path, name: str) -> Adapter:
    """Raises StudentError for what is no complete file of a student."""
    tensors, metadata = ({}, {}) if path.is_dir() else formats.read_weights((path,))
    if not is_adapter(metadata):
        raise NotAnAdapter(
            f"{name} is a whole network and needs no teacher. Expected an adapter made by Distill Guidance: "
            f"disconnect the "
            "teacher."
        )
    return adapter_of(tensors, metadata, name)


def adapter_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], name: str) -> Adapter:
    """The adapter in a file's tensors. Raises DamagedFile or NotFinite."""
    lora = {key: value for key, value in tensors.items() if key.startswith(LAYERS)}
    known = ("time_layer", "teacher", "guidance_scale_range")
    if (
        PROJECTION not in tensors
        or any(key not in metadata for key in known)
        or any(key.replace("lora_up", "lora_down") not in lora for key in lora)
    ):
        raise DamagedFile(
            f"{name}: the file of a distilled student lacks some of its parts. Expected LoRA pairs, "
            f"{PROJECTION} and the "
            f"metadata {', '.join(known)}: get another copy, or distil again."
        )
    projection = tensors[PROJECTION]
    formats.check_finite({**lora, PROJECTION: projection}, name)
    return Adapter(
        lora,
        projection,
        metadata["time_layer"],
        metadata["teacher"],
        guidance_input(projection.shape[1], metadata, name),
        metadata,
    )
