# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading what users download: safetensors files, JSON, the folders of diffusers. Every file is checked
before it is used, and what is wrong with it is said with its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import DamagedFile, MissingFile, NotFinite, NotSafetensors

Weights = dict[str, torch.Tensor]
Config = Mapping[str, Any]

PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
HEADER_STARTS_AT = 8
"""Bytes: a safetensors file begins with the length of its header, then the header, a JSON object."""


@dataclass(frozen=True)
class Checkpoint:
    """One file, or a diffusers UNet folder and the configs that travel with it (None where there are
    none).
    """

    weights: Weights
    metadata: Config
    config: Config | None = None
    scheduler: Config | None = None
    vae: Config | None = None


def read_json(path: Path) -> Config:
    """A JSON object. Raises MissingFile or DamagedFile."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFile(f"{path}: not found. Restore the file or download the model again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{path}: not valid JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path}: expected a JSON object. Download it again.")
    return value


def read_optional_json(path: Path) -> Config | None:
    return read_json(path) if path.is_file() else None


def read_weights(paths: Iterable[Path], finite: bool = False) -> tuple[Weights, dict[str, Any]]:
    """All tensors, memory-mapped, and the metadata (JSON values decoded) of one file or of a file's shards.

    Raises MissingFile, NotSafetensors or DamagedFile; NotFinite where all are to be ``finite`` and are not.
    """
    weights: Weights = {}
    metadata: dict[str, Any] = {}
    for path in paths:
        check_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata.update({key: _decoded(text) for key, text in (file.metadata() or {}).items()})
                weights.update({key: file.get_tensor(key) for key in file.keys()})
        except SafetensorError as error:
            raise DamagedFile(
                f"{path}: the file is truncated or damaged ({error}). Expected a complete .safetensors file; "
                "download it again and compare its size."
            ) from error
        if finite:
            check_finite(weights, path.name)
    return weights, metadata


def check_header(path: Path) -> None:
    """Refuse what is missing, a pickle, or no safetensors file, before anything reads it."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_STARTS_AT + 1)
    except FileNotFoundError as error:
        raise MissingFile(
            f"{path}: the file is not there any more. Restore it, or refresh the list and choose another."
        ) from error
    opening = start[HEADER_STARTS_AT:]
    if start.startswith(PICKLE_STARTS) and opening != b"{":
        # Advice to the user, in words: the pack itself opens no pickle.
        raise NotSafetensors(
            f"{path}: this is a pickle, which can run any code when opened. Expected .safetensors: convert "
            "it with safetensors.torch.save_file(torch.load(file, weights_only=True), new_file) where you "
            "trust it."
        )
    if not opening:
        raise DamagedFile(f"{path}: the file is truncated or empty ({len(start)} bytes). Download it again.")
    if opening != b"{":
        raise NotSafetensors(f"{path}: not a safetensors file. Expected a UNet in .safetensors format.")


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def check_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise NotFinite for NaN or infinity; sums tensor by tensor, so a mapped file is read but not copied."""
    for key, tensor in weights.items():
        if tensor.is_floating_point():
            total = (tensor.float() if tensor.element_size() == 1 else tensor).sum(dtype=torch.float32)
            if not torch.isfinite(total):
                raise NotFinite(
                    f"{name}: {key} contains NaN or infinity. Expected finite weights: the file is broken or "
                    "its training diverged; get another copy."
                )


def is_unet_config(path: Path) -> bool:
    """Whether ``path`` is the config.json of a UNet2DConditionModel; unreadable ones are not."""
    try:
        return read_json(path).get("_class_name") == "UNet2DConditionModel"
    except (MissingFile, DamagedFile):
        return False


def takes_guidance(config: Path) -> bool:
    """Whether a readable config.json of a UNet asks for a guidance input."""
    return bool(read_json(config).get("time_cond_proj_dim"))


def weight_files(folder: Path, stem: str = "diffusion_pytorch_model") -> tuple[Path, ...]:
    """The weights of a diffusers sub-model: full precision, else fp16, else shards.

    Raises NotSafetensors or MissingFile.
    """
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return (folder / name,)
    shards = tuple(sorted(folder.glob(f"{stem}-*-of-*.safetensors")))
    if shards:
        return shards
    if list(folder.glob("*.bin")):
        raise NotSafetensors(
            f"{folder}: holds only pickles (.bin). Expected {stem}.safetensors: save the model again with "
            "safe_serialization=True."
        )
    raise MissingFile(
        f"{folder}: {stem}.safetensors not found. Download the folder again, with all its files."
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """``path`` is a file, or a UNet's own folder, whose scheduler and vae are looked for beside it.

    Raises MissingFile, NotSafetensors or DamagedFile.
    """
    if not path.is_dir():
        return Checkpoint(*read_weights((path,)))
    weights, metadata = read_weights(weight_files(path))
    return Checkpoint(
        weights,
        metadata,
        config=read_json(path / "config.json"),
        scheduler=read_optional_json(path.parent / "scheduler" / "scheduler_config.json"),
        vae=read_optional_json(path.parent / "vae" / "config.json"),
    )
