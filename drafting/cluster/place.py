# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in which prompt a sampler runs, and what of that prompt a worker needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_execution.graph import get_input_info
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

import nodes

from ..errors import Undraftable
from .graph import STAND_IN, Graph, Node, upstream

SAMPLED = ("MODEL", "GUIDER", "SAMPLER")
"""Types of inputs by which a node that gives a LATENT is known to sample."""


@dataclass(frozen=True)
class Place:
    """context: ComfyUI's, of this execution of the node."""

    context: Any
    node: str

    def graph(self, run: str) -> Graph:
        """What the node needs but for its latents, which travel.

        Raises :class:`Undraftable` where a worker would have to sample another picture first.
        """
        prompt = get_progress_state().dynprompt
        latents = [
            name
            for name in prompt.get_node(self.node)["inputs"]
            if _type_of(prompt, self.node, name) == "LATENT"
        ]
        graph = upstream(prompt.get_node, self.node, latents=latents, run=run)
        for name, node in graph.items():
            if name != self.node and node["class_type"] != STAND_IN and _samples(node):
                raise Undraftable(
                    f"each worker would have to sample {node['class_type']} again, from whose picture the "
                    "conditioning is made"
                )
        return graph


def place() -> Place:
    """Of the sampler that runs. Raises :class:`Undraftable` where ComfyUI runs no prompt."""
    context = get_executing_context()
    prompt = getattr(get_progress_state(), "dynprompt", None)
    if context is None or prompt is None or not prompt.has_node(context.node_id):
        raise Undraftable("workers run the graph of the prompt, and no prompt runs")
    return Place(context, context.node_id)


def _type_of(prompt: Any, node: str, name: str) -> str | None:
    kind = nodes.NODE_CLASS_MAPPINGS[prompt.get_node(node)["class_type"]]
    return get_input_info(kind, name)[0]


def _samples(node: Node) -> bool:
    """Whether a node draws a picture: by its sockets, whoever made it."""
    kind = nodes.NODE_CLASS_MAPPINGS[node["class_type"]]
    inputs = [get_input_info(kind, name)[0] for name in node["inputs"]]
    return "LATENT" in kind.RETURN_TYPES and any(each in SAMPLED for each in inputs)
