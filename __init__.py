# SPDX-License-Identifier: GPL-3.0-or-later
"""DizzyDiff: few-step, many-guidance, multi-device diffusion sampling for ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's way in: an extension that lists the pack's node classes."""
    from comfy_api.latest import ComfyExtension, io

    from .nodes import NODE_CLASSES

    class DizzyDiff(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return list(NODE_CLASSES)

    return DizzyDiff()
