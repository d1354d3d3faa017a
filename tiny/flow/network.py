# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow-matching transformer: ComfyUI's own Flux class, as small as its detection allows.

Core reads widths and depths of a Flux from its weights, but takes heads of 128 channels (axes of 16, 56 and
56), an MLP ratio of 4, 16 latent channels and patches of 2 as given. So the smallest width is 128, with one
head.
"""

from __future__ import annotations

from typing import Any

import torch

CONFIG: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 64,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 6,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
OUTER = ("_in.", "final_layer.", "mod")
"""Parts of the names of weights that are no hidden matrices: embeddings, modulations, the last layer."""
LATENT = (16, 12, 12)


def flux(generator: torch.Generator) -> Any:
    """A new Flux. ComfyUI must be importable.

    Matrices are normal with variance 1 / inputs; what multiplies or adds to the residual stream starts at
    zero (Peebles and Xie 2023), and so does the guidance input, which a teacher never trains.
    """
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    network = Flux(**CONFIG, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)
    silent = ("mod.lin", "modulation.", "final_layer.linear", "guidance_in.out_layer")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter.fill_(1)
            elif parameter.ndim == 1 or any(part in name for part in silent):
                parameter.zero_()
            else:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
    return network
