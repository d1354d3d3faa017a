# SPDX-License-Identifier: GPL-3.0-or-later
"""Which layer of a network guidance can join."""

from __future__ import annotations

from torch import nn

from .errors import UnsupportedTeacher

TIME_LAYERS = (
    "time_embed.0",
    "time_in.in_layer",
    "t_embedder.mlp.0",
    "time_embedding.0",
    "time_embedding.linear_1",
    "t_embedder.linear_1",
    "adaln_single.emb.timestep_embedder.linear_1",
)
"""First layer behind the embedding of time: UNets, Flux, SD3 and Lumina, Wan, and others by the names of
their classes in core.
"""


def time_layer_of(network: nn.Module, name: str) -> str:
    """Raises UnsupportedTeacher."""
    modules = dict(network.named_modules())
    for layer in TIME_LAYERS:
        if isinstance(modules.get(layer), nn.Linear):
            return layer
    raise UnsupportedTeacher(
        f"{name}: no time embedding of a known kind in {type(network).__name__}. Expected a UNet of Stable "
        "Diffusion's kind, or a transformer such as Flux, SD3, Lumina or Wan."
    )
