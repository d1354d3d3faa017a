# SPDX-License-Identifier: GPL-3.0-or-later
"""Sentences under the node that is running, in the editor."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

_said: ContextVar[tuple[Any, tuple[str, ...]]] = ContextVar("dizzydiff_said", default=(None, ()))
"""ComfyUI's context of the node that runs, and what it has said. The editor shows one text a node."""


def show_at_node(sentence: str) -> None:
    """Below what the node said before, each sentence once. Nothing happens where no node runs, or nobody
    looks on.
    """
    if (place := _place()) is not None:
        server, context = place
        said = tuple(dict.fromkeys((*_before(context), sentence)))
        _said.set((context, said))
        server.send_progress_text("\n".join(said), context.node_id)


def show_progress_at_node(sentence: str) -> None:
    """Below what the node said, until it says more: for what the next sentence of its kind replaces."""
    if (place := _place()) is not None:
        server, context = place
        server.send_progress_text("\n".join((*_before(context), sentence)), context.node_id)


def _place() -> tuple[Any, Any] | None:
    """The server, and ComfyUI's context of the node that runs; None without either."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    return None if context is None or server is None else (server, context)


def _before(context: Any) -> tuple[str, ...]:
    node, said = _said.get()
    return said if node is context else ()
