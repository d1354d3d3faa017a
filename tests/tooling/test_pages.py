# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan in the hall and the pages beside it name files and functions that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "kernels/README.md", "docs/*.md")
PLAN = ("ARCHITECTURE.md", "CONTRIBUTING.md")
SOMEBODY_ELSES = ("models/", "user/", "output/", "ComfyUI/", ".dev/", ".venv/")
"""Folders of the user or of the environment."""
TO_BE_MEASURED = ("benchmarks/results/gpu.json", "gpu.csv")
PLACEHOLDER = re.compile(r"\b(NAME|LANG|ID|NODE|FILE|FOLDER)\b|NAME_")
PATH = re.compile(r"[\w./-]+\.(?:py|md|json|txt|toml|yml|csv)|[\w./-]+/")


@pytest.fixture(scope="module")
def files(root: Path) -> set[str]:
    """All files and folders of the clone but hidden ones, as they are named from its root."""
    found = {entry for entry in root.iterdir() if not entry.name.startswith(".")}
    found |= {path for folder in found if folder.is_dir() for path in folder.rglob("*")}
    return {path.relative_to(root).as_posix() for path in found} | {".github/workflows/tests.yml"}


def code_of(page: Path) -> set[str]:
    """What a page sets as code within its lines, and the modules in a tree."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"(?s)```\n(.*?)```", text)
    modules = {name for block in blocks for name in re.findall(r"\b\w+\.py\b", block)}
    return modules | set(re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", text)))


def pages(root: Path) -> list[Path]:
    return [page for pattern in PAGES for page in root.glob(pattern)]


def test_the_files_that_pages_name_are_there(root: Path, files: set[str]) -> None:
    missing = [
        f"{page.name}: {name}"
        for page in pages(root)
        for name in code_of(page)
        if PATH.fullmatch(name)
        and not name.startswith(SOMEBODY_ELSES)
        and not PLACEHOLDER.search(name)
        and name not in TO_BE_MEASURED
        and not any(file == name.rstrip("/") or file.endswith("/" + name.rstrip("/")) for file in files)
    ]
    assert not missing


@pytest.mark.parametrize("page", PLAN)
def test_the_names_that_the_plan_says_are_in_the_code(page: str, root: Path, files: set[str]) -> None:
    code = "\n".join(
        (root / file).read_text(encoding="utf-8")
        for file in files
        if file.endswith(".py") and file != "tests/tooling/test_pages.py"
    )
    words = set(re.findall(r"\w+", code))
    missing = [
        name
        for name in code_of(root / page)
        if re.fullmatch(r"[A-Za-z_][\w.]*", name)
        and not PATH.fullmatch(name)
        and not PLACEHOLDER.search(name)
        and not {part for part in name.split(".") if part} <= words
    ]
    assert not missing


def test_links_between_pages_lead_to_a_file_and_a_heading(root: Path) -> None:
    def anchor(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")

    wrong = []
    for page in pages(root):
        for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, place = link.partition("#")
            if "://" in link or not path:
                continue
            target = (page.parent / path).resolve()
            text = target.read_text(encoding="utf-8") if target.is_file() and place else ""
            anchors = {anchor(heading) for heading in re.findall(r"(?m)^#+ (.+)$", text)}
            if not target.exists() or (place and place not in anchors):
                wrong.append(f"{page.name}: {link}")
    assert not wrong
