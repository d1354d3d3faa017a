# SPDX-License-Identifier: GPL-3.0-or-later
"""DizzyDiff: few-step, many-guidance, multi-device diffusion sampling for ComfyUI."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./web"
OLDEST_COMFYUI = "0.27.0"


def is_older(version: str, than: str) -> bool:
    """Whether a release such as "0.27.0" came before another."""
    numbers, others = ([int(number) for number in re.findall(r"\d+", each)[:3]] for each in (version, than))
    return numbers < others


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's way in: an extension that lists the pack's node classes and adds its scheduler, or does
    neither where ComfyUI is too old for them.
    """
    from comfy_api.latest import ComfyExtension
    from comfyui_version import __version__

    class DizzyDiff(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            if is_older(__version__, OLDEST_COMFYUI):
                logging.error(
                    "DizzyDiff needs ComfyUI %s or newer, and this is %s. Update ComfyUI to get its nodes.",
                    OLDEST_COMFYUI,
                    __version__,
                )
                return []
            from .nodes import NODE_CLASSES
            from .nodes.cluster import follow_free
            from .nodes.stability import register_scheduler

            register_scheduler()
            follow_free()
            return list(NODE_CLASSES)

    return DizzyDiff()
