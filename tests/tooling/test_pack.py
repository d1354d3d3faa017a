# SPDX-License-Identifier: GPL-3.0-or-later
"""What ComfyUI and the registry expect of the pack as a whole."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import tomllib
import yaml
from PIL import Image

from devtools.comfyui import RELEASES
from devtools.process import environment, printed

HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "triton", "comfy", "comfy_api")


def test_loading_the_pack_imports_nothing_heavy(root: Path) -> None:
    script = f"""
import pathlib, runpy, sys
load_package = runpy.run_path({str(root / "devtools" / "package.py")!r})["load_package"]
load_package("dizzydiff", pathlib.Path({str(root)!r}))
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    assert printed([sys.executable, "-P", "-c", script]).strip() == ""


def test_the_registry_finds_what_it_needs(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["name"] == "dizzydiff"
    assert {"version", "license", "requires-python", "urls"} <= settings["project"].keys()
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"} <= settings["tool"][
        "comfy"
    ].keys()


def test_icon_and_banner_are_where_the_registry_is_told_and_of_its_shapes(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    here = (
        settings["project"]["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com")
        + "/main/"
    )
    icon, banner = (
        Image.open(root / settings["tool"]["comfy"][name].removeprefix(here)) for name in ("Icon", "Banner")
    )
    assert icon.width == icon.height <= 400
    assert banner.width * 9 == banner.height * 21


def test_the_changelog_knows_the_version(root: Path) -> None:
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\n## {version}\n" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["requirements-dev.txt", "constraints.txt"])
def test_development_packages_are_pinned(name: str, root: Path) -> None:
    lines = [
        line.partition("#")[0].strip() for line in (root / name).read_text(encoding="utf-8").splitlines()
    ]
    assert all("==" in line for line in lines if line)


def test_ruff_is_the_same_before_a_commit_as_in_the_tests(root: Path) -> None:
    (hooks,) = yaml.safe_load((root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    pinned = (root / "requirements-dev.txt").read_text(encoding="utf-8")
    assert f"\nruff=={hooks['rev'].removeprefix('v')}\n" in pinned
    assert [hook["id"] for hook in hooks["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_public_ci_runs_all_tests_on_three_systems(root: Path) -> None:
    workflow = yaml.safe_load((root / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert {system.partition("-")[0] for system in job["strategy"]["matrix"]["os"]} == {
        "ubuntu",
        "windows",
        "macos",
    }
    matrix = job["strategy"]["matrix"]
    assert {*matrix["comfyui"], *(each["comfyui"] for each in matrix["include"])} == set(RELEASES)
    assert [step["run"] for step in job["steps"] if "run" in step] == ["python3 dev.py test"]
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used), "pinned to a commit"


@pytest.mark.parametrize("form", ["wrong_or_broken.yml", "idea.yml"])
def test_issue_forms_are_read(form: str, root: Path) -> None:
    text = (root / ".github" / "ISSUE_TEMPLATE" / form).read_text(encoding="utf-8")
    told = yaml.safe_load(text)
    assert {"name", "description", "body"} <= told.keys()
    assert all(
        field["type"] in ("textarea", "input") and field["attributes"]["label"] for field in told["body"]
    )


def test_the_registrys_own_tool_accepts_the_pack(root: Path, tmp_path: Path) -> None:
    private = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    done = subprocess.run(
        command, cwd=root, env=environment(private), capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("version", "older"),
    [("0.26.9", True), ("0.3.75", True), ("0.27.0", False), ("0.30.0", False), ("1.0", False)],
)
def test_an_older_comfyui_is_told_apart(version: str, older: bool, root: Path) -> None:
    import dizzydiff

    assert dizzydiff.is_older(version, dizzydiff.OLDEST_COMFYUI) is older
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["comfy"]["requires-comfyui"] == f">={dizzydiff.OLDEST_COMFYUI}"


def test_an_older_comfyui_gets_one_line_and_no_nodes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import dizzydiff

    latest = types.SimpleNamespace(ComfyExtension=object, io=None)
    monkeypatch.setitem(sys.modules, "comfy_api", types.SimpleNamespace(latest=latest))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    monkeypatch.setitem(sys.modules, "comfyui_version", types.SimpleNamespace(__version__="0.26.0"))
    extension = asyncio.run(dizzydiff.comfy_entrypoint())
    assert asyncio.run(extension.get_node_list()) == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        line
        == "DizzyDiff needs ComfyUI 0.27.0 or newer, and this is 0.26.0. Update ComfyUI to get its nodes."
    )


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)


def test_every_picture_that_a_page_shows_is_there(root: Path) -> None:
    """ComfyUI looks for the pictures of a help page in web/docs, also where the page is a translation in a
    folder of its own.
    """
    helps = root / "web" / "docs"
    pages = {
        page: page.parent for page in (root / "README.md", *(root / "docs").glob("*.md"))
    } | dict.fromkeys(helps.rglob("*.md"), helps)
    shown = [
        (page, folder / name)
        for page, folder in pages.items()
        for name in pictures(page.read_text(encoding="utf-8"))
    ]
    assert len(shown) >= 10
    assert not [
        f"{page.relative_to(root)}: {picture.name}" for page, picture in shown if not picture.is_file()
    ]


def test_every_help_page_says_the_same_in_chinese(root: Path) -> None:
    pages, nodes = (
        root / "web" / "docs",
        json.loads((root / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8")),
    )
    assert (
        {page.stem for page in pages.glob("*.md")}
        == {page.parent.name for page in pages.glob("*/zh.md")}
        == nodes.keys()
    )
    for kind, node in nodes.items():
        english, chinese = (
            (pages / name).read_text(encoding="utf-8") for name in (f"{kind}.md", f"{kind}/zh.md")
        )
        assert chinese.startswith(f"# {node['display_name']}\n"), kind
        named = set(re.findall(r"\*\*([^*]+)\*\*", english)) & node["inputs"].keys()
        assert set(re.findall(r"\*\*([^*]+)\*\*（`(\w+)`）", chinese)) == {
            (node["inputs"][name]["name"], name) for name in named
        }, kind
        for alike in (
            r"\d+(?:\.\d+)?",
            r"(?m)^(?:#+|-|\d\.|\||!) *",
        ):  # numbers; headings, points, rows and pictures
            assert Counter(re.findall(alike, chinese, re.ASCII)) == Counter(
                re.findall(alike, english, re.ASCII)
            ), kind
        code = r"`([^`]+)`"
        assert set(re.findall(code, english)) <= set(re.findall(code, chinese)), kind
        assert pictures(chinese) == pictures(english), kind
