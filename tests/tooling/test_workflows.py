# SPDX-License-Identifier: GPL-3.0-or-later
"""The example graphs as a user sees them: readable, tidy and whole."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from devtools.templates.families import models_of
from devtools.templates.page import table, with_table
from devtools.templates.presets import PRESETS, Preset

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
TITLE = 30
"""Height of the bar above a node's position; a group's own is inside its box."""

Box = tuple[float, float, float, float]


def node_box(node: dict[str, Any]) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def group_box(group: dict[str, Any]) -> Box:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a: Box, b: Box) -> bool:
    return b[0] <= a[0] and b[1] + TITLE <= a[1] and a[2] <= b[2] and a[3] <= b[3]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def graph(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_there_are_workflows_and_each_has_an_api_copy() -> None:
    assert WORKFLOWS
    assert sorted(path.name for path in (WORKFLOWS[0].parent / "api").iterdir()) == [
        path.name for path in WORKFLOWS
    ]


def test_nothing_overlaps_and_every_node_stands_in_a_titled_group(graph: dict[str, Any]) -> None:
    for boxes in (
        [node_box(node) for node in graph["nodes"]],
        [group_box(group) for group in graph["groups"]],
    ):
        assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]
    for node in graph["nodes"]:
        assert any(inside(node_box(node), group_box(group)) for group in graph["groups"]), node["type"]
    assert all(group["title"] for group in graph["groups"])


def test_a_note_explains_the_graph(graph: dict[str, Any]) -> None:
    (note,) = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    english, chinese = (
        len(re.findall(letters, note["widgets_values"][0])) for letters in ("[a-z]", "[一-鿿]")
    )
    assert english > 100 and chinese > 50, "in both languages"


def test_titles_of_a_graph_are_in_both_languages(graph: dict[str, Any]) -> None:
    """The editor translates the names of node types, and nothing that a workflow names itself."""
    titles = [each["title"] for each in (*graph["groups"], *graph["nodes"]) if each.get("title")]
    assert not [title for title in titles if not re.search("[A-Za-z].* · .*[一-鿿]", title)]


def test_models_that_are_not_in_the_pack_come_with_their_download(graph: dict[str, Any]) -> None:
    for node in graph["nodes"]:
        names = [value for value in node["widgets_values"] if str(value).endswith(".safetensors")]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == names
        for model in models:
            assert re.fullmatch(
                rf"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/([\w./-]+/)?{re.escape(model['name'])}",
                model["url"],
            )
            assert model["directory"] in ("checkpoints", "diffusion_models", "text_encoders", "vae")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_the_files_of_a_preset_are_those_of_comfyuis_own_templates(preset: Preset) -> None:
    """Core's templates come as a package beside ComfyUI."""
    package = importlib.util.find_spec("comfyui_workflow_templates_json")
    assert package and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "templates"
    known = {model.url for model in models_of(preset)}
    for file in folder.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        known = {url for url in known if url not in text}
    assert not known


def test_the_docs_show_the_presets(root: Path) -> None:
    page = (root / "docs" / "models.md").read_text(encoding="utf-8")
    assert with_table(page) == page and table() in page


def test_links_agree_with_the_sockets_at_both_ends(graph: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link, source, output, target, socket, kind in graph["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][socket]["link"] == link
        assert nodes[source]["outputs"][output]["type"] == kind
        assert kind in nodes[target]["inputs"][socket]["type"].split(",")
    assert all(socket["link"] is not None for node in nodes.values() for socket in node["inputs"])
