# SPDX-License-Identifier: GPL-3.0-or-later
"""Which students and pipelines the user has, by the names shown in the lists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import MissingFile, OutsideModelsFolder
from .files import is_unet_config, takes_guidance

EMBEDDED = "tiny"


def inside(root: Path, name: str) -> Path:
    """root/name. Raises OutsideModelsFolder for names that are absolute or climb out of root."""
    if not name or name.startswith(("/", "\\")) or ":" in name or ".." in re.split(r"[/\\]", name):
        raise OutsideModelsFolder(f"{name!r} is not a name inside {root}. Choose one from the list.")
    return root / name


def unet_folders(pipeline: Path) -> Iterator[str]:
    """Sub-folders of a pipeline with a UNet2DConditionModel, "unet" first."""
    names = sorted(config.parent.name for config in pipeline.glob("*/config.json") if is_unet_config(config))
    return iter(sorted(names, key=lambda name: name != "unet"))


def pipeline_unets(roots: list[Path], embedded: Path) -> Mapping[str, Path]:
    """Name -> UNet folder: NAME for NAME/unet, NAME/sub for any further UNet, ``tiny`` for the pack's own."""
    pipelines = {EMBEDDED: embedded}
    for root in roots:
        for index in sorted(root.glob("**/model_index.json")):
            pipelines.setdefault(index.parent.relative_to(root).as_posix(), index.parent)
    found = {
        name if sub == "unet" else f"{name}/{sub}": folder / sub
        for name, folder in pipelines.items()
        for sub in unet_folders(folder)
    }
    return {EMBEDDED: embedded / "unet", **found}


def lone_unets(roots: list[Path]) -> Mapping[str, Path]:
    """Folders with a UNet2DConditionModel of their own, outside any pipeline."""
    return {
        config.parent.relative_to(root).as_posix(): config.parent
        for root in roots
        for config in sorted(root.glob("**/config.json"))
        if is_unet_config(config)
    }


def students_among(folders: Mapping[str, Path]) -> list[str]:
    """Names of the UNet folders whose network takes a guidance scale."""
    return [name for name, folder in folders.items() if takes_guidance(folder / "config.json")]


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
        if path.is_file():
            return path
    if name in folders and folders[name].is_dir():
        return folders[name]
    raise MissingFile(
        f"{name}: the file is not there any more. Expected it under models/diffusion_models, "
        "models/checkpoints or models/diffusers; restore it, or refresh the list and choose another."
    )
