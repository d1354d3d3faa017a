# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that Distill Guidance writes: an adapter of a teacher with the projection C, and the manifest
that joins several adapters of one teacher.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from . import files
from .errors import DamagedFile, NotAnAdapter
from .guidance import GuidanceInput, guidance_input

ADAPTER_FORMAT = "dizzydiff student adapter 1"
MANIFEST_FORMAT = "dizzydiff students 1"
PROJECTION = "guidance.weight"
CENTRES = "centres"
LAYERS = "diffusion_model."
PLAIN_NAME = re.compile(r"[^/\\:]+\.safetensors")
NEEDED_METADATA = ("time_layer", "teacher", "guidance_scale_range")


def is_manifest(metadata: Mapping[str, Any]) -> bool:
    """Whether a file with this metadata joins several adapters."""
    return metadata.get("format") == MANIFEST_FORMAT


def needs_teacher(metadata: Mapping[str, Any]) -> bool:
    """Whether a file with this metadata is a student only together with its teacher."""
    return metadata.get("format") in (ADAPTER_FORMAT, MANIFEST_FORMAT)


@dataclass(frozen=True)
class Adapter:
    """A student relative to its teacher.

    lora: ``diffusion_model.<layer>.lora_up.weight`` [out, rank] and ``.lora_down.weight`` [rank, in].
    projection: C [F, width]; C e(w) joins the F inputs of ``time_layer``, the first layer behind the
    embedding of time. teacher: its fingerprint. settings: all of the file's metadata.
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

    @property
    def teacher_name(self) -> str:
        return str(self.settings.get("teacher_name", "another model"))


def adapter_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], name: str) -> Adapter:
    """The adapter in a file's tensors. Raises NotAnAdapter or DamagedFile."""
    if metadata.get("format") != ADAPTER_FORMAT:
        raise NotAnAdapter(
            f"{name} is a whole network and needs no teacher. Expected an adapter made by Distill Guidance: "
            "disconnect the teacher."
        )
    lora = {key: value for key, value in tensors.items() if key.startswith(LAYERS)}
    projection = tensors.get(PROJECTION)
    if (
        projection is None
        or not is_matrix(projection)
        or not isinstance(metadata.get("time_layer"), str)
        or not isinstance(metadata.get("teacher"), str)
        or "guidance_scale_range" not in metadata
        or not lora
        or not all(map(is_pair, *pairs_of(lora)))
    ):
        raise DamagedFile(
            f"{name}: the file of a distilled student lacks some of its parts. Expected LoRA pairs of equal "
            f"rank, {PROJECTION} and the metadata {', '.join(NEEDED_METADATA)}: get another copy, or distill "
            "again."
        )
    files.check_finite({**lora, PROJECTION: projection}, name)
    guidance = guidance_input(projection.shape[1], metadata, name)
    return Adapter(lora, projection, metadata["time_layer"], metadata["teacher"], guidance, metadata)


def pairs_of(lora: Mapping[str, Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """lora_up and lora_down of every layer that has one of them; None for a half, or a key that is
    neither.
    """
    layers = dict.fromkeys(key.replace(".lora_down.", ".lora_up.") for key in lora)
    return [lora.get(up) for up in layers], [
        lora.get(up.replace(".lora_up.", ".lora_down.")) for up in layers
    ]


def is_pair(up: Tensor | None, down: Tensor | None) -> bool:
    """up [out, rank] and down [rank, in]."""
    return (
        up is not None
        and down is not None
        and up is not down
        and is_matrix(up)
        and is_matrix(down)
        and up.shape[1] == down.shape[0]
    )


def is_matrix(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.is_floating_point() and tensor.numel() > 0


@dataclass(frozen=True)
class Manifest:
    """Several students of one teacher, each for a region of the prompts.

    centres: [K, E], of the regions. files: K names of the adapters' files, which lie beside the manifest.
    """

    path: Path
    centres: Tensor
    files: tuple[str, ...]

    def adapter(self, number: int) -> Adapter:
        """The student of a region, read anew. Raises StudentError."""
        path = self.path.with_name(self.files[number])
        return adapter_of(*files.read_weights((path,), mapped=False), path.name)


def manifest_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path) -> Manifest:
    """The manifest in the tensors of the file at ``path``. Raises DamagedFile."""
    names, centres = metadata.get("files"), tensors.get(CENTRES)
    if (
        centres is None
        or not is_matrix(centres)
        or not isinstance(names, list)
        or len(names) != len(centres)
        or not names
        or not all(isinstance(name, str) and PLAIN_NAME.fullmatch(name) for name in names)
    ):
        raise DamagedFile(
            f"{path.name}: the manifest of several students lacks some of its parts. Expected {CENTRES} and "
            "the name of a file beside it for each: get another copy, or distill again."
        )
    files.check_finite({CENTRES: centres}, path.name)
    return Manifest(path, centres, tuple(names))


def read(path: Path, name: str) -> Adapter | Manifest:
    """Raises StudentError for what is no complete file of Distill Guidance."""
    tensors, metadata = ({}, {}) if path.is_dir() else files.read_weights((path,), mapped=False)
    if is_manifest(metadata):
        return manifest_of(tensors, metadata, path)
    return adapter_of(tensors, metadata, name)
