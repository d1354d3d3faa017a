# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of a prompt that a worker runs to come to the same sampler."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

Node = dict[str, Any]
Graph = dict[str, Node]
"""A prompt in API format, by node id."""

STAND_IN = "DizzyDiffClusterLatent"
"""The node of workers that gives the latent which the sampler has here. It is in no list of nodes."""


def is_link(value: Any) -> bool:
    """Whether an input's value is another node's output, [node id, number]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], (int, float))
    )


def upstream(node: Callable[[str], Node], target: str, *, latents: Collection[str], run: str) -> Graph:
    """All that ``target`` needs, by the prompt's own ids.

    node: what the prompt says of an id. latents: inputs of the target whose latent travels, so that nothing
    upstream of them runs. run: goes into the inputs of both, so that no cache answers for them.
    """
    graph: Graph = {}
    waiting = [target]
    while waiting:
        name = waiting.pop()
        if name in graph:
            continue
        found = node(name)
        inputs = dict(found["inputs"])
        if name == target:
            stand_in = f"{target}.latent"
            for latent in latents:
                inputs[latent] = [stand_in, 0]
                graph[stand_in] = {"class_type": STAND_IN, "inputs": {"run": run}}
            inputs["dizzydiff_run"] = run
        graph[name] = {**found, "inputs": inputs}
        waiting += [value[0] for value in inputs.values() if is_link(value)]
    return graph
