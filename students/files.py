# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading what users download: safetensors files, JSON, the folders of diffusers. Every file is checked
before it is used, and what is wrong with it is said with its name.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import (
    ConfigMismatch,
    DamagedFile,
    MissingFile,
    NotFinite,
    NotSafetensors,
    UnsupportedModel,
)

Weights = dict[str, torch.Tensor]
Config = Mapping[str, Any]

PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
LARGEST_JSON = 16 * 2**20
"""Bytes: no config is near it."""
MOST_SHARDS = 10_000
LARGEST_RMS = 1e4
"""Of the numbers of a tensor: those of trained networks are below 100."""
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
    """A JSON object. Raises MissingFile, or DamagedFile for whatever cannot be read as one."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_JSON:
            raise DamagedFile(f"{path}: not a file, or too large for a config. Expected a JSON object.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFile(f"{path}: not found. Restore the file or download the model again.") from error
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, no JSON, or numbers beyond all bounds
        raise DamagedFile(f"{path}: not valid JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path}: expected a JSON object. Download it again.")
    return value


def read_optional_json(path: Path) -> Config | None:
    return read_json(path) if path.is_file() else None


def number_in(config: Config, key: str, default: float, between: tuple[float, float], name: str) -> float:
    """A setting. Raises ConfigMismatch unless it is a number from the lower to the higher one; ``name`` of
    whose config, for the message.
    """
    value, (low, high) = config.get(key, default), between
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigMismatch(
            f"{name}: the config says {key} = {str(value)[:40]}; expected a number from {low:g} to {high:g}. "
            "Download it again."
        )
    return float(value)


def read_weights(paths: Iterable[Path], mapped: bool = True) -> tuple[Weights, dict[str, Any]]:
    """All tensors and the metadata (JSON values decoded) of one file or of a file's shards.

    mapped: the tensors stay in the file, which Windows then lets nobody replace; else they are read into
    memory. Raises MissingFile, NotSafetensors or DamagedFile.
    """
    weights: Weights = {}
    metadata: dict[str, Any] = {}
    for path in paths:
        check_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata.update({key: _decoded(text) for key, text in (file.metadata() or {}).items()})
                for key in file.keys():
                    tensor = file.get_tensor(key)
                    weights[key] = tensor if mapped else tensor.clone()
        except SafetensorError as error:
            raise DamagedFile(
                f"{path}: the file is truncated or damaged ({error}). Expected a complete .safetensors file; "
                "download it again and compare its size."
            ) from error
    return weights, metadata


def names_in(path: Path) -> list[str]:
    """Of the tensors of a file, none of which is read. Raises as :func:`read_weights`."""
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise DamagedFile(f"{path}: the file is truncated or damaged ({error}).") from error


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
    except (ValueError, RecursionError):
        return text


def check_floating(weights: Weights, name: str) -> None:
    """Raise UnsupportedModel for integers: quantised weights mean nothing without their scales."""
    for key, tensor in weights.items():
        if not tensor.is_floating_point():
            raise UnsupportedModel(
                f"{name}: {key} holds {tensor.dtype}. Expected weights in fp32, fp16, bf16 or fp8: get the "
                "model in one of them."
            )


def check_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise NotFinite for NaN, infinity, and numbers that only a flipped bit makes of a weight.

    One pass over each tensor, so a mapped file is read but not copied.
    """
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not _is_sane(tensor):
            raise NotFinite(
                f"{name}: {key} contains NaN, infinity or numbers far beyond those of any trained network. "
                "Expected finite weights: the file is broken or its training diverged; get another copy."
            )


def _is_sane(tensor: torch.Tensor) -> bool:
    if tensor.element_size() <= 2 and tensor.dtype != torch.bfloat16:  # too narrow for numbers that large
        narrow = tensor.float() if tensor.element_size() == 1 else tensor
        return bool(torch.isfinite(narrow.sum(dtype=torch.float32)))
    norm = float(torch.linalg.vector_norm(tensor))
    return norm <= LARGEST_RMS * math.sqrt(max(1, tensor.numel()))


def weight_files(folder: Path, stem: str = "diffusion_pytorch_model") -> tuple[Path, ...]:
    """The weights of a diffusers sub-model: full precision, else fp16; in one file, else in shards.

    Raises NotSafetensors, MissingFile, or DamagedFile where shards of several downloads lie together.
    """
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return (folder / name,)
    shards = shards_in(folder, stem)
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


def shards_in(folder: Path, stem: str) -> tuple[Path, ...]:
    """The shards of a model in full precision, else in fp16, by diffusers' names of today and of before 0.30
    (STEM.fp16-00001-of-00002, STEM-00001-of-00002.fp16). Raises MissingFile or DamagedFile.
    """
    pattern = re.compile(re.escape(stem) + r"(\.fp16)?-(\d+)-of-(\d+)(\.fp16)?\.safetensors")
    sets: dict[tuple[str, str], dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        found = pattern.fullmatch(path.name)
        if found:
            before, number, count, after = found.groups(default="")
            sets.setdefault((before or after, count), {})[int(number)] = path
    variant = "" if any(not variant for variant, _ in sets) else ".fp16"
    chosen = {count: paths for (each, count), paths in sets.items() if each == variant}
    if not chosen:
        return ()
    if len(chosen) > 1:
        raise DamagedFile(
            f"{folder}: holds shards of several downloads, of {' and of '.join(sorted(chosen))} files. "
            "Expected those of one: remove the others."
        )
    ((count, paths),) = chosen.items()
    missing = sorted(set(range(1, int(count) + 1)) - set(paths)) if int(count) <= MOST_SHARDS else [1]
    if missing or len(paths) != int(count):
        raise MissingFile(
            f"{folder}: shard {missing[0] if missing else 0} of {int(count)} of {stem}{variant} is missing. "
            "Expected all of them: download the folder again."
        )
    return tuple(paths[number] for number in sorted(paths))


def read_checkpoint(path: Path) -> Checkpoint:
    """``path`` is a file, or a UNet's own folder. Its scheduler is looked for beside it and in it, its vae
    beside it.

    Raises MissingFile, NotSafetensors or DamagedFile.
    """
    if not path.is_dir():
        return Checkpoint(*read_weights((path,)))
    weights, metadata = read_weights(weight_files(path))
    return Checkpoint(
        weights,
        metadata,
        config=read_json(path / "config.json"),
        scheduler=read_optional_json(path.parent / "scheduler" / "scheduler_config.json")
        or read_optional_json(path / "scheduler_config.json"),
        vae=read_optional_json(path.parent / "vae" / "config.json"),
    )
