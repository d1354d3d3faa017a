# SPDX-License-Identifier: GPL-3.0-or-later
"""ComfyUI's front end as a user's hands and eyes meet it: dropping files, clicking, typing, looking."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Locator, Page, Response

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = "window.app?.graph && window.app.canvas && 'KSampler' in window.LiteGraph.registered_node_types"


class FrontEnd:
    """One loaded page. ``problems`` collects what the browser complains about that has to do with the
    pack.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.problems: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("response", self._receive)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_function(READY)

    def _hear(self, message: ConsoleMessage) -> None:
        told = f"{message.text} {message.location.get('url')}"
        if (
            message.type in ("error", "warning")
            and re.search("DizzyDiff|/dizzydiff/", told)
            and "status of 404" not in told
        ):
            self.problems.append(f"{message.type}: {told}")

    def _receive(self, response: Response) -> None:
        translated_help = re.search(
            r"/docs/\w+/[\w-]+\.md$", response.url
        )  # looked for first; the English page stands in for it
        if response.status >= 400 and "/dizzydiff/" in response.url and not translated_help:
            self.problems.append(f"{response.status}: {response.url}")

    def blank(self) -> None:
        """An empty graph in a tab of its own, without dialogs or messages left open."""
        self.page.keyboard.press("Escape")
        self.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.page.wait_for_function("app.graph.nodes.length === 0")
        self.settle()

    def drop(self, file: Path) -> None:
        """Drop a file from outside the browser onto the canvas, and wait until the graph it holds has
        come.
        """
        self.blank()
        session = self.page.context.new_cdp_session(self.page)
        place = {"x": 800, "y": 450, "data": {"items": [], "files": [str(file)], "dragOperationsMask": 1}}
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, **place})
        session.detach()
        self.page.wait_for_function("app.graph.nodes.length > 0")
        self.settle()

    def load(self, graph: dict[str, Any]) -> None:
        """Show a graph in the editor's format."""
        self.page.evaluate("graph => app.loadGraphData(graph)", graph)
        self.settle()

    def templates(self) -> None:
        """Open the template browser on the pack's own."""
        self.page.get_by_role("button", name="Templates").first.click()
        self.page.get_by_text("dizzydiff", exact=True).last.click()

    def open_template(self, name: str) -> None:
        """Click a template of the pack, and wait for its graph."""
        self.blank()
        self.templates()
        self.page.get_by_test_id(f"template-workflow-{name}").click()
        self.page.wait_for_function("app.graph.nodes.length > 0")

    def settle(self, milliseconds: int = 500) -> None:
        """Let transitions end, where the page gives no sign to wait for."""
        self.page.wait_for_timeout(milliseconds)

    def nodes(self) -> list[dict[str, Any]]:
        """What the graph shows: each node's id, type, title, whether it is known, whether it is marked red,
        and its box.
        """
        return self.page.evaluate("""app.graph.nodes.map(node => ({
            id: Number(node.id), type: node.type, title: node.title, box: Array.from(node.boundingRect),
            known: node.type in LiteGraph.registered_node_types, red: Boolean(node.has_errors),
        }))""")

    def groups(self) -> list[list[float]]:
        """The boxes of the graph's groups."""
        return self.page.evaluate(
            "app.graph.groups.map(group => Array.from(group.boundingRect ?? group._bounding))"
        )

    def scale(self) -> float:
        """How large the graph is shown, once the view stands still."""
        self.page.wait_for_function(
            """() => {
                const scale = app.canvas.ds.scale, still = window.lastScale === scale
                window.lastScale = scale
                return still
            }""",
            polling=200,
        )
        return self.page.evaluate("app.canvas.ds.scale")

    def prompt(self) -> dict[str, Any]:
        """What *Export (API)* gives, without what newer front ends note of a node's pack."""
        prompt = json.loads(
            self.page.evaluate("app.graphToPrompt().then(prompt => JSON.stringify(prompt.output))")
        )
        for node in prompt.values():
            node["_meta"] = {"title": node["_meta"]["title"]}
        return prompt

    def select(self, kind: str) -> None:
        """Click the title of the graph's first node of a type."""
        x, y = self.page.evaluate(
            """kind => {
                const node = app.graph.nodes.find(node => node.type === kind)
                return app.canvasPosToClientPos([node.pos[0] + 40, node.pos[1] - 15])
            }""",
            kind,
        )
        self.page.mouse.click(x, y)

    def search(self, text: str) -> list[str]:
        """Double-click the empty canvas, type, and read the names found; the dialog stays open."""
        box = self.page.get_by_role("combobox", name="Add a node")
        for _ in range(10):  # a graph that is still being loaded takes no notice of the mouse
            if box.is_visible():
                break
            self.page.mouse.dblclick(800, 600)
            self.settle()
        box.fill(text)
        self.settle()
        return [name.splitlines()[0] for name in self.page.get_by_role("option").all_inner_texts()]

    def run(self) -> None:
        """Click *Run*."""
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def pictures(self, kind: str, timeout: float = 120.0) -> dict[str, list[int]]:
        """The pictures that the first node of a type shows, once they are there: file name and size in
        pixels.
        """
        node = "app.graph.nodes.find(node => node.type === kind)"
        shown = (
            f"kind => {{ const images = {node}?.imgs ?? []; "
            "return images.length > 0 && images.every(image => image.naturalWidth) }"
        )
        self.page.wait_for_function(shown, arg=kind, timeout=1000 * timeout)
        told = "[new URL(image.src).searchParams.get('filename'), [image.naturalWidth, image.naturalHeight]]"
        return dict(self.page.evaluate(f"kind => {node}.imgs.map(image => {told})", kind))

    def error(self) -> Locator:
        """The message that the front end lays over the graph when something is wrong."""
        return self.page.get_by_test_id("error-overlay")

    def open_errors(self) -> None:
        """Click the button of that message; the front end of ComfyUI 0.27.0 has other words on it."""
        self.error().get_by_role(
            "button", name=re.compile("^(View details|See Errors|Show missing models)$")
        ).click()
        self.settle()
