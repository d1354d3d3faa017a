# SPDX-License-Identifier: GPL-3.0-or-later
"""The table: a network of each family of ComfyUI's list, and of variants that are conditioned otherwise."""

from __future__ import annotations

from .description import Network
from .flux import FLUXES
from .hunyuan import HUNYUANS
from .images import IMAGES
from .lumina import LUMINAS
from .pixels import PIXEL_SPACE
from .shapes import SHAPES
from .sounds import SOUNDS
from .unets import UNETS
from .videos import VIDEOS
from .wan import WANS

TABLE = [
    *UNETS,
    *IMAGES,
    *FLUXES,
    *LUMINAS,
    *PIXEL_SPACE,
    *VIDEOS,
    *HUNYUANS,
    *WANS,
    *SOUNDS,
    *SHAPES,
]
NETWORKS: dict[str, Network] = {network.name: network for network in TABLE}
NO_LATENTS = {
    "RT_DETR_v4": "detects objects",
    "SAM3": "segments",
    "SAM31": "segments",
    "DepthAnything3": "estimates depth",
}
"""Families of core's list that make no latents, and what they do instead."""


def unknown_families() -> list[str]:
    """Families of the running ComfyUI that are not in the table."""
    import comfy.supported_models

    known = {network.family for network in NETWORKS.values()} | NO_LATENTS.keys()
    return [family.__name__ for family in comfy.supported_models.models if family.__name__ not in known]
