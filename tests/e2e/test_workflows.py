# SPDX-License-Identifier: GPL-3.0-or-later
"""Every example workflow, run by an independent client against a real server; its pictures are judged by the
reader.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from devtools.process import printed
from devtools.server import Server
from devtools.templates.families import workflow
from devtools.templates.presets import PRESETS, Preset
from dizzydiff.tiny import reader

from .test_server import error_of

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
EXPECTED = {
    "cluster": 4,
    "compare": 2,
    "distil": 4,
    "distil_guider": 4,
    "draft_frozen": 4,
    "draft_grid": 4,
    "draft_inpaint": 4,
    "draft_refine": 4,
    "guidance_schedule": 4,
    "guided_student": 4,
    "guidance_sweep": 4,
    "how_many_steps": 4,
    "restyle": 4,
    "spin": 9,
    "stability_grid": 4,
    "watch_stability": 4,
}
"""Pictures that each workflow on the embedded pipeline makes."""
NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
RUNNING = [
    pytest.param(path, marks=NEEDS_RAY if path.stem == "cluster" else ())
    for path in WORKFLOWS
    if path.stem in EXPECTED
]
DOWNLOADING = [path for path in WORKFLOWS if path.stem not in EXPECTED]


def enough(root: Path, pictures: int) -> int:
    """How many of so many pictures must show the prompt: what was measured of the student, less one
    picture.
    """
    quality = json.loads((root / "tiny" / "quality.json").read_text(encoding="utf-8"))
    return int(pictures * next(row["student"] for row in quality["same_g"] if row["g"] == 4) / 100 + 0.5) - 1


def comfy_run(server: Server, workflow: Path, home: Path) -> None:
    """comfy-cli with nothing remembered from before, and nothing sent anywhere."""
    private = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "COMFY_NO_WATCH": "1",
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "comfy_cli",
        "--skip-prompt",
        "run",
        "--workflow",
        str(workflow),
        "--wait",
    ]
    command += ["--host", "127.0.0.1", "--port", str(server.port), "--timeout", "280", "--json"]
    printed(command, home, private)


def prompts(workflow: dict[str, Any]) -> list[str]:
    """The texts that a UI workflow's prompt nodes hold, where they hold any."""
    texts = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "CLIPTextEncode"]
    return [text for text in texts if text]


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: path.stem)
def test_comfy_cli_runs_the_workflow_and_the_pictures_show_the_prompt(
    path: Path, root: Path, comfy_server: Server, tmp_path: Path
) -> None:
    before = set(comfy_server.output.rglob("*.png"))
    comfy_run(comfy_server, path, tmp_path)
    pictures = [Image.open(file) for file in sorted(set(comfy_server.output.rglob("*.png")) - before)]
    *_, caption = prompts(json.loads(path.read_text(encoding="utf-8")))
    expected = EXPECTED[path.stem]
    assert [picture.size for picture in pictures] == [(96, 96)] * expected
    right = [reader.satisfies(caption, reader.read(picture)) for picture in pictures]
    assert sum(right) >= enough(root, expected), f"{caption!r}: {right}"


@pytest.mark.parametrize("path", DOWNLOADING, ids=lambda path: path.stem)
def test_a_workflow_on_downloaded_models_is_accepted_with_files_of_their_names(
    path: Path, comfy_server: Server, models: Path
) -> None:
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    files = {
        models / model["directory"] / model["name"]: node["type"]
        for node in nodes
        for model in node["properties"].get("models", [])
    }
    for file, loader in files.items():
        file.parent.mkdir(exist_ok=True)
        # Load Guided Student looks at the header before anything runs.
        file.write_bytes(b"\x02\0\0\0\0\0\0\0{}" if loader == "DizzyDiffLoadStudent" else b"")
    try:
        prompt = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
        error = error_of(comfy_server.run(prompt))
    finally:
        for file in files:
            file.unlink()
    loaders = {node["type"] for node in nodes if node["properties"].get("models")}
    assert error["node_type"] in loaders, "an empty file is all that was wrong"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_s_workflow_is_what_its_row_says(preset: Preset, comfy_server: Server, root: Path) -> None:
    saved = json.loads((root / "workflows" / f"{preset.name}.json").read_text(encoding="utf-8"))
    assert workflow(preset, comfy_server.request("/object_info")) == saved


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_api_copy_says_the_same_as_the_workflow(path: Path, comfy_server: Server) -> None:
    converted = convert_ui_to_api(
        json.loads(path.read_text(encoding="utf-8")), comfy_server.request("/object_info")
    )
    assert json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8")) == converted


def test_comfyui_offers_the_workflows_as_templates(comfy_server: Server) -> None:
    assert sorted(comfy_server.request("/workflow_templates")["dizzydiff"]) == [
        path.stem for path in WORKFLOWS
    ]
