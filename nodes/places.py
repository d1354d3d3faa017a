# SPDX-License-Identifier: GPL-3.0-or-later
"""Where files of this pack go: into ComfyUI's models folders, by names that cannot leave them."""

import os
from pathlib import Path

import folder_paths

from ..students.library import inside

SUFFIX = ".safetensors"


def place_of(folder: str, name: str) -> Path:
    """Where the file of this name is, or is to be saved, in a kind of models folder, such as ``loras``.

    Raises OutsideModelsFolder.
    """
    roots = [Path(root) for root in folder_paths.get_folder_paths(folder)]
    stem = name.strip().removesuffix(SUFFIX)
    paths = [inside(root, stem and stem + SUFFIX) for root in roots]
    own = [path for root, path in zip(roots, paths, strict=True) if root.name == folder]
    begun = [path for path in paths if os.path.isfile(path)]  # False for names that no file can have
    return [*begun, *own, *paths][0]
