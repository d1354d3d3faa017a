# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user does in the graph editor, done by a real browser. Screenshots are kept in .dev/screenshots."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from devtools.server import Server

from .front_end import FrontEnd

pytestmark = pytest.mark.flaky(reruns=2, only_rerun=["TimeoutError"])
WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
FOUND = {
    "lcm": "Load Guided Student",
    "guidance distilled": "Load Guided Student",
    "multi gpu": "Draft Devices",
    "parallel": "Draft-Refine KSampler",
    "faster": "Draft-Refine KSampler",
    "dual gpu": "Draft Devices",
    "加速": "Draft-Refine KSampler",
    "lightning": "Distill Guidance",
    "sigmas": "Stability Grid",
    "ays": "Stability Grid",
    "restyle": "N-Step Student Sampler",
    "variation seed": "Spin Noise",
}
"""Where the words that users look for must lead."""

Box = list[float]


def models(path: Path) -> dict[int, str]:
    """The models that a workflow downloads, by the node that loads them."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    return {node["id"]: model["name"] for node in nodes for model in node["properties"].get("models", [])}


def workflow(name: str) -> Path:
    return next(path for path in WORKFLOWS if path.stem == name)


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def inside(a: Box, b: Box) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[0] + a[2] <= b[0] + b[2] and a[1] + a[3] <= b[1] + b[3]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_dropped_workflow_is_whole_tidy_and_queues_what_its_api_copy_says(
    path: Path, front_end: FrontEnd
) -> None:
    front_end.drop(path)
    nodes, missing = front_end.nodes(), models(path)
    assert all(node["known"] for node in nodes)
    assert {node["id"] for node in nodes if node["red"]} == missing.keys()
    assert front_end.error().is_visible() == bool(missing)
    assert not [
        (a["title"], b["title"]) for a, b in itertools.combinations(nodes, 2) if overlap(a["box"], b["box"])
    ]
    groups = front_end.groups()
    assert not [node["title"] for node in nodes if not any(inside(node["box"], group) for group in groups)]
    assert front_end.prompt() == json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("screen", [(1600, 900), (1920, 1080)], ids=lambda screen: f"{screen[0]}")
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_template_opens_large_enough_to_be_read(
    path: Path, screen: tuple[int, int], front_end: FrontEnd
) -> None:
    """Below 0.57 the front end writes no text."""
    page, (width, height) = front_end.page, screen
    before = page.viewport_size
    page.set_viewport_size({"width": width, "height": height})
    try:
        front_end.open_template(path.stem)
        assert front_end.scale() >= 0.6
        page.screenshot(path=path.parents[1] / ".dev" / "screenshots" / f"opened-{path.stem}-{width}.png")
    finally:
        page.set_viewport_size(before)


def test_run_shows_the_pictures_in_their_node_and_a_saved_picture_brings_the_graph_back(
    front_end: FrontEnd, comfy_server: Server
) -> None:
    front_end.drop(workflow("guided_student"))
    front_end.run()
    pictures, prompt = front_end.pictures("SaveImage"), front_end.prompt()
    assert list(pictures.values()) == [[96, 96]] * 4

    front_end.drop(comfy_server.output / next(iter(pictures)))
    assert front_end.prompt() == prompt
    expect(front_end.error()).to_be_hidden()


@pytest.mark.parametrize(("words", "title"), FOUND.items(), ids=FOUND.keys())
def test_a_double_click_and_the_words_users_know_find_the_node(
    words: str, title: str, front_end: FrontEnd, comfy_server: Server
) -> None:
    found = front_end.search(words)
    assert title in found
    if words == "lcm":  # a core node has it in its name
        assert next(name for name in found if name in names_of_the_pack(comfy_server)) == title
    front_end.page.get_by_role("option").nth(found.index(title)).click()
    front_end.page.mouse.click(800, 600)
    assert [node["title"] for node in front_end.nodes()] == [title]


def names_of_the_pack(server: Server) -> list[str]:
    nodes = server.request("/object_info").values()
    return [node["display_name"] for node in nodes if node["category"].startswith("DizzyDiff/")]


def test_every_node_is_found_by_its_name(front_end: FrontEnd, comfy_server: Server) -> None:
    assert [name for name in names_of_the_pack(comfy_server) if name not in front_end.search(name)] == []


def open_help(front_end: FrontEnd, kind: str, title: str) -> Locator:
    """The picture in the help of the graph's first node of a type, once it is there."""
    front_end.select(kind)
    front_end.page.get_by_test_id("info-button").click()
    expect(front_end.page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    picture = front_end.page.get_by_test_id("properties-panel").get_by_role("img").first
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    picture.scroll_into_view_if_needed()
    return picture


def test_a_nodes_help_opens_with_its_picture(front_end: FrontEnd) -> None:
    front_end.drop(workflow("draft_refine"))
    open_help(front_end, "DizzyDiffDraftRefineKSampler", "Draft-Refine KSampler")


def test_missing_models_are_offered_for_download(front_end: FrontEnd) -> None:
    path = workflow("with_lcm_dreamshaper")
    front_end.drop(path)
    front_end.open_errors()
    offered = front_end.page.get_by_test_id("properties-panel")
    for name in models(path).values():
        expect(offered).to_contain_text(name)
    expect(offered.get_by_test_id("missing-model-download")).to_have_count(len(models(path)))
    front_end.settle()


def test_a_wrong_value_is_explained_at_its_node(front_end: FrontEnd) -> None:
    front_end.drop(workflow("guidance_sweep"))
    front_end.page.evaluate(
        "app.graph.nodes.find(node => node.type === 'DizzyDiffGuidanceSweep').widgets[0].value = '1, two'"
    )
    front_end.run()
    expect(front_end.error()).to_be_visible()
    assert [node["type"] for node in front_end.nodes() if node["red"]] == ["DizzyDiffGuidanceSweep"]
    front_end.open_errors()
    page = front_end.page
    if (
        info := page.get_by_role("button", name="Info for Guidance Sweep - scales")
    ).count():  # the front end of 0.27.0 says it at once
        info.click()
    expect(page.get_by_text(re.compile("got .*1, two.*; expected numbers from 0 to 100"))).to_be_visible()
    front_end.problems.clear()  # the page logs the refusal that this test provokes


def test_the_template_browser_shows_every_workflow_with_its_picture(front_end: FrontEnd) -> None:
    front_end.templates()
    for path in WORKFLOWS:
        card = front_end.page.get_by_test_id(f"template-workflow-{path.stem}")
        card.scroll_into_view_if_needed()  # a card's picture is loaded when it comes into view
        picture = card.get_by_role("img").first.evaluate(
            "image => image.decode().then(() => [image.naturalWidth, image.currentSrc])"
        )
        assert picture[0] == 512 and not picture[1].endswith("default-template.png"), path.stem
    front_end.settle()


def test_a_graph_from_before_an_input_was_renamed_keeps_its_values(
    front_end: FrontEnd, tmp_path: Path
) -> None:
    graph = json.loads(workflow("draft_refine").read_text(encoding="utf-8"))
    values = {node["type"]: node["widgets_values"] for node in graph["nodes"]}
    values["DizzyDiffDevices"][-1], values["DizzyDiffDraftRefineKSampler"][-2] = 2, 3
    for node in graph["nodes"]:
        if node["type"] in ("DizzyDiffDevices", "DizzyDiffDraftRefineKSampler"):
            node["inputs"].append({"name": "width", "type": "INT", "widget": {"name": "width"}, "link": None})
    file = tmp_path / "old.json"
    file.write_text(json.dumps(graph), encoding="utf-8")

    front_end.drop(file)
    inputs = {node["class_type"]: node["inputs"] for node in front_end.prompt().values()}
    assert inputs["DizzyDiffDevices"]["predictions_per_round"] == 2
    assert inputs["DizzyDiffDraftRefineKSampler"]["predictions_per_round"] == 3
    assert inputs["DizzyDiffDraftRefineKSampler"]["tolerance"] == 0.01


def test_a_bypassed_sampler_leaves_nothing_dangling(front_end: FrontEnd) -> None:
    """Its timeline needs no node that would miss it; the empty latent goes through."""
    front_end.drop(workflow("draft_refine"))
    front_end.select("DizzyDiffDraftRefineKSampler")
    front_end.page.keyboard.press("Control+b")
    kinds = [node["class_type"] for node in front_end.prompt().values()]
    assert "DizzyDiffDraftRefineKSampler" not in kinds and "SaveImage" in kinds
    front_end.run()
    assert len(front_end.pictures("SaveImage")) == 4
    expect(front_end.error()).to_be_hidden()


def test_devices_and_sampler_draft_inside_a_subgraph(front_end: FrontEnd, comfy_server: Server) -> None:
    front_end.drop(workflow("draft_refine"))
    before = front_end.prompt()
    front_end.page.evaluate("""() => {
        const inside = ["DizzyDiffDevices", "DizzyDiffDraftRefineKSampler"]
        app.canvas.selectItems(app.graph.nodes.filter(node => inside.includes(node.type)))
        return app.extensionManager.command.execute("Comfy.Graph.ConvertToSubgraph")
    }""")
    front_end.page.wait_for_function("app.graph.nodes.every(node => !node.type.startsWith('DizzyDiffD'))")
    after = front_end.prompt()
    assert sorted(node["class_type"] for node in after.values()) == sorted(
        node["class_type"] for node in before.values()
    )
    (sampler,) = [key for key, node in after.items() if node["class_type"] == "DizzyDiffDraftRefineKSampler"]
    front_end.run()
    assert len(front_end.pictures("SaveImage")) == 4
    newest = list(comfy_server.request("/history").values())[-1]
    assert newest["outputs"][sampler]["draft_refine"][0]["rounds"] < 28


@pytest.fixture
def nodes_2(front_end: FrontEnd) -> Iterator[FrontEnd]:
    """The page with *Nodes 2.0*, which draws nodes as elements of the page, larger than the canvas does."""
    switch = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    front_end.page.evaluate(switch, True)
    yield front_end
    front_end.page.evaluate(switch, False)


def test_every_workflow_is_tidy_in_nodes_2(nodes_2: FrontEnd) -> None:
    for path in WORKFLOWS:
        nodes_2.load(json.loads(path.read_text(encoding="utf-8")))
        nodes, groups = nodes_2.nodes(), nodes_2.groups()
        assert nodes_2.page.locator("[data-node-id]").count() == len(nodes), path.stem
        pairs = itertools.combinations(nodes, 2)
        assert not [(path.stem, a["title"], b["title"]) for a, b in pairs if overlap(a["box"], b["box"])]
        assert not [
            (path.stem, node["title"])
            for node in nodes
            if not any(inside(node["box"], group) for group in groups)
        ]


def test_nodes_2_shows_timeline_and_pictures_in_their_nodes(nodes_2: FrontEnd) -> None:
    nodes_2.drop(workflow("draft_refine"))
    nodes_2.page.evaluate("""() => {
        const node = app.graph.nodes.find(node => node.type === "DizzyDiffDraftRefineKSampler")
        node.widgets.find(widget => widget.name === "seed").value = 2  // not run before, so not cached
    }""")
    nodes_2.run()
    for kind in ("DizzyDiffDraftRefineKSampler", "SaveImage"):
        (node,) = [node["id"] for node in nodes_2.nodes() if node["type"] == kind]
        picture = nodes_2.page.locator(f'[data-node-id="{node}"] img').first
        picture.wait_for(timeout=120_000)
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 96


def test_app_mode_asks_for_the_prompt_and_runs_the_graph(front_end: FrontEnd, comfy_server: Server) -> None:
    """A graph as the app builder saves it: which widgets are asked for, and which nodes are results."""
    graph = json.loads(workflow("draft_refine").read_text(encoding="utf-8"))
    ids = {node.get("title", node["type"]): node["id"] for node in graph["nodes"]}
    prompt, sampler = ids["Prompt · 提示词"], ids["DizzyDiffDraftRefineKSampler"]
    asked = {"inputs": [[prompt, "text"], [sampler, "tolerance"]], "outputs": [ids["SaveImage"]]}
    graph["extra"] |= {"linearMode": True, "linearData": asked}
    page = front_end.page
    front_end.load(graph)
    try:
        widgets = page.get_by_test_id("linear-widgets")
        expect(widgets.get_by_text("tolerance")).to_be_visible()
        widgets.get_by_role("textbox").first.fill("a red circle on white")
        with page.expect_response(re.compile("/prompt$")) as answer:
            page.get_by_role("button", name="Run", exact=True).last.click()
        ran = comfy_server.finished(answer.value.json()["prompt_id"])
    finally:
        page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
        front_end.settle()
    assert ran["status"]["status_str"] == "success"
    assert ran["prompt"][2][str(prompt)]["inputs"]["text"] == "a red circle on white"
    assert ran["outputs"][str(sampler)]["draft_refine"][0]["rounds"] < 28
    assert len(ran["outputs"][str(ids["SaveImage"])]["images"]) == 4


@pytest.fixture
def chinese(
    front_end: FrontEnd, comfy_server: Server, root: Path, request: pytest.FixtureRequest
) -> Iterator[FrontEnd]:
    """A second page, in Chinese."""
    set_language = "language => app.extensionManager.setting.set('Comfy.Locale', language)"
    front_end.page.evaluate(set_language, "zh")
    page = front_end.page.context.new_page()
    try:
        second = FrontEnd(page)
        second.open(comfy_server.address)
        yield second
        page.screenshot(path=root / ".dev" / "screenshots" / f"{request.node.name}-zh.png")
        assert not second.problems
    finally:
        page.close()
        front_end.page.evaluate(set_language, "en")


def test_the_nodes_speak_chinese(chinese: FrontEnd) -> None:
    chinese.drop(workflow("guided_student"))
    assert "学生引导强度" in [node["title"] for node in chinese.nodes()]


def test_a_nodes_help_opens_in_chinese_with_its_picture(chinese: FrontEnd, root: Path) -> None:
    page = (root / "web" / "docs" / "DizzyDiffDraftRefineKSampler" / "zh.md").read_text(encoding="utf-8")
    (says,) = re.findall(r"!\[(.+轮.+)\]\(", page)
    chinese.drop(workflow("draft_refine"))
    picture = open_help(chinese, "DizzyDiffDraftRefineKSampler", "草稿与精修 K采样器")
    expect(picture).to_have_attribute("alt", says)
