# SPDX-License-Identifier: GPL-3.0-or-later
"""Sentences under the node that is running, in the editor."""

from __future__ import annotations


def show_at_node(sentence: str) -> None:
    """Nothing happens where no node runs, or nobody looks on."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(sentence, context.node_id)
