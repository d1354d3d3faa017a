# SPDX-License-Identifier: GPL-3.0-or-later
"""Narrow random networks of the real layouts, made and saved by diffusers and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_CROSS, UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}

LAYOUTS: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (32, 64, 128, 128),
        "layers_per_block": 2,
        "cross_attention_dim": 48,
        "attention_head_dim": 8,
        "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
        "up_block_types": (UP_PLAIN, UP_CROSS, UP_CROSS, UP_CROSS),
    },
    "sd2": {
        "block_out_channels": (64, 128, 192, 192),
        "layers_per_block": 2,
        "cross_attention_dim": 48,
        "attention_head_dim": (1, 2, 3, 3),
        "use_linear_projection": True,
        "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
        "up_block_types": (UP_PLAIN, UP_CROSS, UP_CROSS, UP_CROSS),
    },
    "sdxl": {
        "block_out_channels": (64, 64, 128),
        "layers_per_block": 2,
        "cross_attention_dim": 48,
        "attention_head_dim": (1, 1, 2),
        "transformer_layers_per_block": (1, 2, 3),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (UP_CROSS, UP_CROSS, UP_PLAIN),
        **XL,
    },
    "ssd1b": {
        "block_out_channels": (64, 64, 128),
        "layers_per_block": 2,
        "cross_attention_dim": 48,
        "attention_head_dim": (1, 1, 2),
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 5], [2, 1, 1], 1],
        "mid_block_type": "UNetMidBlock2D",
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (UP_CROSS, UP_CROSS, UP_PLAIN),
        **XL,
    },
    "tiny": {
        "block_out_channels": (64, 96),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "attention_head_dim": 3,
        "down_block_types": (PLAIN, PLAIN),
        "up_block_types": (UP_CROSS, UP_PLAIN),
    },
}


def unet(
    layout: str, guidance_width: int | None = 256, seed: int = 0, **overrides: Any
) -> UNet2DConditionModel:
    """A UNet of this layout whose every tensor matters, in fp32."""
    torch.manual_seed(seed)
    network = UNet2DConditionModel(
        sample_size=8, time_cond_proj_dim=guidance_width, **{**LAYOUTS[layout], **overrides}
    )
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if bool((parameter == 1).all()) else 0.0, std=0.1)
    if guidance_width is not None:
        torch.nn.init.normal_(network.time_embedding.cond_proj.weight, std=0.1)
    return network.eval().requires_grad_(False)


def added_conditions(layout: str, rows: int) -> dict[str, Any]:
    """diffusers' ``added_cond_kwargs`` for the layouts that have them."""
    if layout not in ("sdxl", "ssd1b"):
        return {}
    pooled = torch.randn(1, 1280, generator=torch.Generator().manual_seed(5)).expand(rows, -1)
    return {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]]).expand(rows, -1)}


def save_file_student(
    network: UNet2DConditionModel,
    path: Path,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
    metadata: dict[str, str] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {prefix + key: t.to(dtype).contiguous() for key, t in network.state_dict().items()}, path, metadata
    )
    return path


def save_pipeline(
    folder: Path,
    layout: str = "tiny",
    guidance_width: int | None = 256,
    vae: str = "tiny",
    scheduler: str = "v",
    **unet_overrides: Any,
) -> Path:
    """A whole pipeline with random weights, the student in unet/ and a teacher without guidance input in
    teacher/.
    """
    network = unet(layout, guidance_width, **unet_overrides)
    network.save_pretrained(folder / "unet")
    unet(layout, None).save_pretrained(folder / "teacher")
    config = folder / "unet" / "config.json"
    extra = {"guidance_scale_range": [1, 8], "guidance_weight": "g - 1"}
    told = {**json.loads(config.read_text(encoding="utf-8")), **extra}
    config.write_text(json.dumps(told), encoding="utf-8")
    schedules = {
        "v": DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.02, prediction_type="v_prediction"
        ),
        "eps": DDIMScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        "lcm": LCMScheduler(),
    }
    schedules[scheduler].save_pretrained(folder / "scheduler")
    save_text_encoder(folder / "text_encoder", hidden=LAYOUTS[layout]["cross_attention_dim"])
    torch.manual_seed(2)
    autoencoder = (
        AutoencoderTiny(scaling_factor=1.0)
        if vae == "tiny"
        else AutoencoderKL(
            block_out_channels=(32, 64, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.5,
        )
    )
    autoencoder.save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    return folder


def save_text_encoder(folder: Path, hidden: int) -> None:
    """As the embedded pipeline's: fp16, the token table in fp8."""
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    CLIPTextModel(config).half().save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = {
        key: t.to(torch.float8_e4m3fn) if key.endswith("token_embedding.weight") else t
        for key, t in load_file(path).items()
    }
    save_file(weights, path, {"format": "pt"})
