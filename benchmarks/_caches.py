# SPDX-License-Identifier: GPL-3.0-or-later
"""Core's step caches, and the model calls that they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CACHES = ("EasyCache", "LazyCache")
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""``reuse_threshold``; core's default is 0.2."""


START, END = 0.15, 0.95
"""Core's ``start_percent`` and ``end_percent``."""


def cached(kind: str, threshold: float, made: list[None]) -> Callable[[Any], Any]:
    """A patch of a MODEL by core's node, as it stands but for the threshold; each call of the network that is
    left appends to ``made``.
    """
    import comfy.patcher_extension
    import comfy_extras.nodes_easycache as nodes

    def count(executor: Any, *arguments: Any, **options: Any) -> Any:
        made.append(None)
        return executor(*arguments, **options)

    def patch(model: Any) -> Any:
        node = getattr(nodes, f"{kind}Node")
        patched = node.execute(model, threshold, START, END, False).result[0]
        # Of a step's own: innermost, so that it sees what the cache lets through.
        patched.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "calls counted", count
        )
        return patched

    return patch
