# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that a graph names and a worker lacks: input images that only the main machine has."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import folder_paths

from .graph import Graph


def file_of(name: str) -> Path | None:
    """The file that "photo.png", "photo.png [output]" or "clipspace/photo.png [temp]" names here, as
    ComfyUI's loaders read it; None where there is none in that folder.
    """
    relative, told = folder_paths.annotated_filepath(name)
    folder = os.path.abspath(told or folder_paths.get_input_directory())
    path = os.path.abspath(os.path.join(folder, relative))
    return Path(path) if Path(path).is_relative_to(folder) and os.path.isfile(path) else None


def files_in(graph: Graph) -> dict[str, Path]:
    """All that inputs of the graph name, by that name."""
    inputs = {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
    return {name: path for name in sorted(inputs) if (path := file_of(name)) is not None}


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lacking(digests: Mapping[str, str]) -> list[str]:
    """Names of files that are not here, or are others."""
    return [name for name, sum_ in digests.items() if (own := file_of(name)) is None or digest(own) != sum_]


class Guests:
    """Files of the main machine, in a folder of this process in ComfyUI's temp, for as long as a picture."""

    def __init__(self) -> None:
        self._folder = f"dizzydiff_{os.getpid()}"

    def take_in(self, graph: Graph, files: Mapping[str, bytes]) -> Graph:
        """The graph, which names the files where they are now. Nothing that is here is written over."""
        moved = {name: self._write(name, content) for name, content in files.items()}
        return {
            node: {**told, "inputs": {key: _moved(value, moved) for key, value in told["inputs"].items()}}
            for node, told in graph.items()
        }

    def send_off(self) -> None:
        shutil.rmtree(Path(folder_paths.get_temp_directory()) / self._folder, ignore_errors=True)

    def _write(self, name: str, content: bytes) -> str:
        """Its new name: the same for the same file, so that ComfyUI's cache knows it again."""
        own = Path(folder_paths.annotated_filepath(name)[0]).name
        place = f"{self._folder}/{hashlib.sha256(content).hexdigest()[:16]}/{own}"
        path = Path(folder_paths.get_temp_directory()) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"{place} [temp]"


def _moved(value: object, moved: Mapping[str, str]) -> object:
    return moved.get(value, value) if isinstance(value, str) else value
