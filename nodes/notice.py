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
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is None or server is None:
        return
    node, before = _said.get()
    said = tuple(dict.fromkeys((*(before if node is context else ()), sentence)))
    _said.set((context, said))
    server.send_progress_text("\n".join(said), context.node_id)
