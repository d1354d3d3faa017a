# SPDX-License-Identifier: GPL-3.0-or-later
"""A workflow in the editor's format, put together from nodes in columns."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from .presets import Model

Info = dict[str, Any]
"""ComfyUI's /object_info."""
Output = tuple[str, int]
"""A node's key, and which of its outputs."""

TOP, GAP, MARGIN, TITLE, ROW, WIDGET, PADDING, TEXT, BADGE = 40, 60, 20, 80, 20, 24, 16, 100, 24
"""Units of the canvas: where groups begin, between nodes, round them, above a group's first node; heights of
a socket, a widget, a node's edge, what a text field has more, and the badge that Nodes 2.0 gives other packs'
nodes.
"""
PICTURE = {"SaveImage": 320, "SaveVideo": 320, "DizzyDiffDraftRefineKSampler": 260}
"""Room below nodes that show what they made."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3", "FLOAT,INT")
COLOUR, LEAST_NOTE = "#3f789e", 400


@dataclass(frozen=True)
class Node:
    """given: an input's value, or the output that it is linked to; the others have their defaults."""

    key: str
    kind: str
    given: dict[str, Any] = field(default_factory=dict)
    title: str | None = None


@dataclass(frozen=True)
class Column:
    """A group of nodes, one below the other. width: of the nodes."""

    title: str
    width: int
    nodes: list[Node]


def assemble(name: str, columns: list[Column], note: str, models: list[Model], info: Info) -> dict[str, Any]:
    """The graph as the editor saves it. The note stands below the shortest column but the last."""
    graph = _Graph(info, {model.name: model for model in models})
    graph.number([node for column in columns for node in column.nodes])
    x = MARGIN
    boxes = []
    for column in columns:
        y = TOP + TITLE
        for node in column.nodes:
            y += graph.place(node, (x + MARGIN, y), column.width) + GAP
        boxes.append([x, TOP, column.width + 2 * MARGIN, y - TOP])
        x += column.width + 3 * MARGIN
    shortest = min(boxes[:-1], key=lambda box: box[3])
    most = max(box[3] for box in boxes)
    height = max(LEAST_NOTE, most - shortest[3] - MARGIN)
    graph.note(note, (shortest[0] + MARGIN, TOP + shortest[3]), (shortest[2] - 2 * MARGIN, height))
    tallest = max(most, shortest[3] + height + MARGIN)
    for box in boxes:
        box[3] = tallest
    return graph.saved(name, [column.title for column in columns], boxes)


class _Graph:
    def __init__(self, info: Info, models: dict[str, Model]) -> None:
        self.info, self.models = info, models
        self.ids: dict[str, int] = {}
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []
        self.kinds: dict[str, str] = {}

    def number(self, nodes: list[Node]) -> None:
        self.ids = {node.key: number for number, node in enumerate(nodes, 1)}
        self.kinds = {node.key: node.kind for node in nodes}

    def place(self, node: Node, pos: tuple[int, int], width: int) -> int:
        """Adds a node; its height."""
        told = self.info[node.kind]
        sockets = {**told["input"].get("required", {}), **told["input"].get("optional", {})}
        widgets = {name: socket for name, socket in sockets.items() if _is_widget(socket)}
        rows = max(len(sockets) - len(widgets), len(told["output"]))
        height = PADDING + ROW * rows + PICTURE.get(node.kind, 0) + BADGE * _is_ours(node)
        values: list[Any] = []
        for name, socket in widgets.items():
            options = socket[1] if len(socket) > 1 else {}
            values.append(node.given.get(name, _default(socket, options)))
            height += WIDGET + (TEXT if options.get("multiline") else 0)
            if options.get("control_after_generate"):
                values.append("fixed")
                height += WIDGET
        self.nodes.append(self._saved(node, [*pos], [width, height], values))
        return height

    def _saved(self, node: Node, pos: list[int], size: list[int], values: list[Any]) -> dict[str, Any]:
        told = self.info[node.kind]
        linked = {name: value for name, value in node.given.items() if isinstance(value, tuple)}
        models = [self.models[value] for value in values if value in self.models]
        ours = _is_ours(node)
        properties: dict[str, Any] = {
            "cnr_id": "dizzydiff" if ours else "comfy-core",
            "ver": "0.1.0" if ours else "0.30.0",
            "Node name for S&R": node.kind,
        }
        if models:
            properties["models"] = [
                {"name": model.name, "url": model.url, "directory": model.directory} for model in models
            ]
        return {
            "id": self.ids[node.key],
            "type": node.kind,
            "pos": pos,
            "size": size,
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            **({"title": node.title} if node.title else {}),
            "inputs": [
                {
                    "name": name,
                    "type": self._type(node.kind, name),
                    "link": self._link(source, node.key, slot),
                }
                for slot, (name, source) in enumerate(linked.items())
            ],
            "outputs": [
                {"name": name, "type": kind, "links": []}
                for name, kind in zip(told["output_name"], told["output"], strict=True)
            ],
            "properties": properties,
            "widgets_values": values,
        }

    def _type(self, kind: str, name: str) -> str:
        told = self.info[kind]["input"]
        return next(told[group][name][0] for group in ("required", "optional") if name in told.get(group, {}))

    def _link(self, source: Output, target: str, slot: int) -> int:
        key, output = source
        kind = self.info[self.kinds[key]]["output"][output]
        self.links.append([len(self.links) + 1, self.ids[key], output, self.ids[target], slot, kind])
        return len(self.links)

    def note(self, text: str, pos: tuple[int, int], size: tuple[int, int]) -> None:
        self.nodes.append(
            {
                "id": len(self.nodes) + 1,
                "type": "MarkdownNote",
                "pos": [*pos],
                "size": [*size],
                "flags": {},
                "order": len(self.nodes),
                "mode": 0,
                "title": "About this workflow · 关于此工作流",
                "inputs": [],
                "outputs": [],
                "properties": {},
                "widgets_values": [text],
                "color": "#432",
                "bgcolor": "#653",
            }
        )

    def saved(self, name: str, titles: list[str], boxes: list[list[int]]) -> dict[str, Any]:
        nodes = {node["id"]: node for node in self.nodes}
        for link, source, output, *_ in self.links:
            nodes[source]["outputs"][output]["links"].append(link)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"dizzydiff/{name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [
                {"id": n, "title": title, "bounding": box, "color": COLOUR, "font_size": 24, "flags": {}}
                for n, (title, box) in enumerate(zip(titles, boxes, strict=True), 1)
            ],
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [120, 100]}},
            "version": 0.4,
        }


def _is_ours(node: Node) -> bool:
    return node.kind.startswith("DizzyDiff")


def _is_widget(socket: list[Any]) -> bool:
    options = socket[1] if len(socket) > 1 else {}
    return (isinstance(socket[0], list) or socket[0] in WIDGETS) and not options.get("forceInput")


def _default(socket: list[Any], options: dict[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    if socket[0] == "COMFY_DYNAMICCOMBO_V3":
        return options["options"][0]["key"]
    choices = socket[0] if isinstance(socket[0], list) else options.get("options", [])
    return choices[0] if choices else ""
