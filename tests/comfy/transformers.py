# SPDX-License-Identifier: GPL-3.0-or-later
"""Small random transformers in core's own classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch

CPU = torch.device("cpu")
AXES = (8, 12, 12)


@dataclass(frozen=True)
class Family:
    """A network of core's class ``kind``. shape: of a latent. pooled: width of its pooled text, if it has
    one.
    """

    kind: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    pooled: int | None = None


FAMILIES = {
    "SD3": Family(
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 1,
            "input_size": None,
            "adm_in_channels": 48,
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "qk_norm": "rms",
            "pos_embed_scaling_factor": None,
            "x_block_self_attn_layers": [0],
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 32, "out_features": 64},
            },
        },
        (16, 8, 8),
        pooled=48,
    ),
    "Qwen-Image": Family(
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": AXES,
        },
        (16, 1, 8, 8),
    ),
    "WAN 2.2 5B": Family(
        "WAN22_T2V",
        {
            "image_model": "wan2.1",
            "dim": 64,
            "ffn_dim": 96,
            "freq_dim": 32,
            "text_dim": 32,
            "num_heads": 2,
            "num_layers": 1,
            "patch_size": (1, 2, 2),
            "text_len": 8,
            "model_type": "t2v",
            "in_dim": 48,
            "out_dim": 48,
        },
        (48, 3, 4, 4),
    ),
}
SVD: dict[str, Any] = {
    "use_checkpoint": False,
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 32,
    "use_linear_in_transformer": True,
    "adm_in_channels": 768,
    "num_classes": "sequential",
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
    "disable_temporal_crossattention": False,
    "num_head_channels": 32,
}


def model_of(kind: str, config: dict[str, Any]) -> Any:
    """MODEL on the CPU, in fp32, every tensor random and of a size that keeps what passes it."""
    model_config = getattr(comfy.supported_models, kind)(dict(config))
    model_config.unet_config.update(config)
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model({}, "", device=CPU)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.diffusion_model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            values = values / math.sqrt(parameter[0].numel())
        else:
            values = 0.1 * values + (0.0 if "bias" in name else 1.0)
        parameter.data = values
    for buffer in model.diffusion_model.buffers():
        if buffer.is_floating_point():
            buffer.data = 0.02 * torch.randn(buffer.shape, generator=generator)  # made without values
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def build(name: str) -> Any:
    return model_of(FAMILIES[name].kind, FAMILIES[name].config)


def encoder(pooled: int | None) -> Any:
    """Texts as random CONDITIONING, the same for the same text."""

    def encode(text: str) -> list:
        generator = torch.Generator().manual_seed(sum(text.encode()))
        options = {} if pooled is None else {"pooled_output": torch.randn(1, pooled, generator=generator)}
        return [[2 * torch.randn(1, 6, 32, generator=generator), options]]

    return encode
