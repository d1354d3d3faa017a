# SPDX-License-Identifier: GPL-3.0-or-later
"""Which students and pipelines the user has, by the names shown in the lists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import MissingFile, OutsideModelsFolder, StudentError
from .files import Config, names_in, read_json, weight_files
from .second_time import second_time

EMBEDDED = "tiny"


def inside(root: Path, name: str) -> Path:
    """root/name. Raises OutsideModelsFolder for names that are absolute or climb out of root."""
    if not name or name.startswith(("/", "\\")) or ":" in name or ".." in re.split(r"[/\\]", name):
        raise OutsideModelsFolder(
            f"{name!r} is not a name inside {root}. Expected one without a drive or .., such as my_student."
        )
    return root / name


def unet_config(folder: Path) -> Config:
    """The config of a folder's UNet2DConditionModel; empty for every other folder, readable or not."""
    try:
        config = read_json(folder / "config.json")
    except StudentError:
        return {}
    return config if config.get("_class_name") == "UNet2DConditionModel" else {}


def folders_with(root: Path, name: str) -> Iterator[Path]:
    """Folders below ``root``, linked ones too, that hold a file of this name. What cannot be read is left
    out.
    """
    visited: set[str] = set()
    for path, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        if name in files:
            yield Path(path)


def unet_folders(pipeline: Path) -> list[str]:
    """Sub-folders of a pipeline with a UNet2DConditionModel, "unet" first."""
    try:
        names = sorted(folder.name for folder in pipeline.iterdir() if unet_config(folder))
    except OSError:
        names = []
    return sorted(names, key=lambda name: name != "unet")


def pipeline_unets(roots: list[Path], embedded: Path) -> Mapping[str, Path]:
    """Name -> UNet folder: NAME for NAME/unet, NAME/sub for any further UNet, ``tiny`` for the pack's own."""
    pipelines = {EMBEDDED: embedded}
    for root in roots:
        for folder in folders_with(root, "model_index.json"):
            pipelines.setdefault(folder.relative_to(root).as_posix(), folder)
    found = {
        name if sub == "unet" else f"{name}/{sub}": folder / sub
        for name, folder in pipelines.items()
        for sub in unet_folders(folder)
    }
    return {EMBEDDED: embedded / "unet", **found}


def lone_unets(roots: list[Path]) -> Mapping[str, Path]:
    """Folders with a UNet2DConditionModel of their own, outside any pipeline."""
    return {
        folder.relative_to(root).as_posix(): folder
        for root in roots
        for folder in folders_with(root, "config.json")
        if unet_config(folder)
    }


def second_time_folders(roots: list[Path]) -> Mapping[str, Path]:
    """Folders with a transformer of two times, by the names of its tensors: NAME for NAME/transformer."""
    found: dict[str, Path] = {}
    for root in roots:
        for folder in folders_with(root, "config.json"):
            named = folder.parent if folder.name == "transformer" and folder.parent != root else folder
            if second_time(tensor_names(folder)) is not None:
                found.setdefault(named.relative_to(root).as_posix(), folder)
    return found


def tensor_names(folder: Path) -> list[str]:
    """Of a folder's weights, by the headers of its files; none where they cannot be read."""
    try:
        return [name for path in weight_files(folder) for name in names_in(path)]
    except StudentError:
        return []


def students_among(folders: Mapping[str, Path]) -> list[str]:
    """Names of the UNet folders whose network takes a guidance scale."""
    return [name for name, folder in folders.items() if unet_config(folder).get("time_cond_proj_dim")]


def find_pipeline(name: str, roots: list[Path], embedded: Path) -> Path:
    """The UNet folder of a pipeline name; raises OutsideModelsFolder or MissingFile."""
    inside(embedded, name)
    unets = pipeline_unets(roots, embedded)
    if name not in unets or not unets[name].is_dir():
        raise MissingFile(
            f"{name}: no such pipeline any more. Expected a diffusers folder with model_index.json under "
            "models/diffusers; refresh the list and choose another."
        )
    return unets[name]


def find_student(name: str, folders: Mapping[str, Path], roots: list[Path]) -> Path:
    """The folder or file of a student name; raises OutsideModelsFolder or MissingFile."""
    for root in roots:
        path = inside(root, name)
        if os.path.isfile(path):  # False for names that no file can have
            return path
    if name in folders and folders[name].is_dir():
        return folders[name]
    raise MissingFile(
        f"{name}: the file is not there any more. Expected it under models/diffusion_models, "
        "models/checkpoints or models/diffusers; restore it, or refresh the list and choose another."
    )
