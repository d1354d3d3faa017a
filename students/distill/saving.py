# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing the files of Distill Guidance: adapters, half-trained or finished, and manifests."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.files import write_safetensors
from .. import adapter
from ..adapter import ADAPTER_FORMAT, CENTRES, MANIFEST_FORMAT, Manifest
from ..errors import StudentError
from .errors import CannotSave

MAKE_ROOM = "Make room or choose another folder, and run again."
IN_USE = "It is in use: close what has it open or choose another name, and run again."
SHARING_VIOLATIONS, ACCESS_DENIED = (32, 33, 1224), 5
"""Windows' numbers for a file that another program has open or mapped; the latter for mapped ones as well."""
FORBIDDEN_LETTERS = re.compile(r'[\x00-\x1f<>:"|?*]')
WINDOWS_DEVICES = {
    *("CON", "PRN", "AUX", "NUL"),
    *(f"{kind}{number}" for kind in ("COM", "LPT") for number in range(1, 10)),
}
SUFFIX = ".safetensors"
LONGEST_NAME = 240
"""Bytes: 255 on most systems, less what the names of several students add."""


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
    """Metadata as JSON, and the rest as :func:`write_strings`."""
    write_strings(path, tensors, {key: json.dumps(value) for key, value in metadata.items()})


def write_strings(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace ``path`` when everything is written; raises CannotSave and leaves it as it was otherwise."""
    try:
        write_safetensors(path, tensors, metadata)
    except Exception as error:
        why = IN_USE if is_in_use(error, path) else MAKE_ROOM
        raise CannotSave(
            f"{path}: could not be written ({error}). A file of this name from before is untouched. {why}"
        ) from error


def is_in_use(error: Exception, path: Path) -> bool:
    number = getattr(error, "winerror", None)
    return number in SHARING_VIOLATIONS or (number == ACCESS_DENIED and os.path.exists(path))


def write_manifest(manifest: Manifest) -> None:
    """One that is there already and says the same stays as it is. Raises CannotSave."""
    if _same(manifest):
        return
    metadata = {"format": MANIFEST_FORMAT, "files": list(manifest.files)}
    write(manifest.path, {CENTRES: manifest.centres}, metadata)


def _same(manifest: Manifest) -> bool:
    try:
        found = adapter.read(manifest.path, manifest.path.name)
    except StudentError:
        return False
    return (
        isinstance(found, Manifest)
        and found.files == manifest.files
        and torch.equal(found.centres, manifest.centres)
    )


def check_target(path: Path) -> None:
    """Raise CannotSave unless a file can be written at ``path``, before hours are spent on what goes there.

    A name that Windows does not allow is refused everywhere: students are passed on.
    """
    new = [each.name for each in (path, *path.parents) if not os.path.exists(each)]
    for name in new:
        if (
            FORBIDDEN_LETTERS.search(name)
            or name.endswith((" ", "."))
            or name.partition(".")[0].strip().upper() in WINDOWS_DEVICES
        ):
            raise CannotSave(
                f"{str(path)!r}: {name!r} is no name for a file or folder on every system. Expected letters, "
                "digits, spaces, dots, - and _: choose another name."
            )
    if not path.name.removesuffix(SUFFIX).strip():
        raise CannotSave("The student has no name. Expected one, such as my_student.")
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(f"{path.name} is a folder")
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (OSError, ValueError) as error:
        raise CannotSave(
            f"{path}: a student could not be written there ({error}). Nothing was done. Expected a folder "
            "that can be written to: choose another name."
        ) from error
