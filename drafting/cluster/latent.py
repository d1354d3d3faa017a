# SPDX-License-Identifier: GPL-3.0-or-later
"""The LATENT of a sampler node, from the sampler's model: what the conditioning in a worker is made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.nested_tensor
import comfy.utils
import torch
from torch import Tensor

from .wire import Sent, packed, unpacked

Latent = dict[str, list[Sent]]
"""A LATENT's "samples", and its "noise_mask" if any, by parts [B, ...]."""


def latent_of(model: Any, shapes: Sequence[torch.Size], mask: Tensor | None) -> Latent:
    """What a sampler's model began with. shapes: of its parts. mask: shaped as the state, or None."""
    base, image = getattr(model.inner_model, "inner_model", None), getattr(model, "latent_image", None)
    if image is None or base is None or not image.any():  # as core, which shifts no empty latent
        parts = [torch.zeros(shape) for shape in shapes]
    else:
        parts = comfy.utils.unpack_latents(base.process_latent_out(image), shapes)
    latent = {"samples": [packed(part) for part in parts]}
    if mask is not None:
        masks = comfy.utils.unpack_latents(mask, shapes)
        # Core wants the mask of a picture with one channel, and made all channels of it.
        latent["noise_mask"] = [packed(each[:, :1] if each.ndim == 4 else each) for each in masks]
    return latent


def latent_again(latent: Latent) -> dict[str, Any]:
    """The LATENT, for a node."""
    parts = {name: [unpacked(part) for part in sent] for name, sent in latent.items()}
    nested = comfy.nested_tensor.NestedTensor
    return {name: each[0] if len(each) == 1 else nested(each) for name, each in parts.items()}
