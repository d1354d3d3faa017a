# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers that draw pixels, without a VAE."""

from __future__ import annotations

from .description import (
    Network,
    Shape,
    constant,
    picture,
    settings,
    tokens,
)

TEXT = (6, 32)
PIXELS: Shape = (3, 32, 32)

PIXELDIT = settings(
    num_groups=2,
    hidden_size=64,
    pixel_hidden_size=16,
    pixel_attn_hidden_size=32,
    pixel_num_groups=2,
    patch_depth=2,
    pixel_depth=1,
    patch_size=8,
    txt_embed_dim=32,
    txt_max_length=12,
    pixel_mlp_chunks=1,
)
O1_TEXT = settings(
    vocab_size=151_936,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=32,
    rope_dims=[6, 5, 5],
)
O1_VISION = settings(hidden_size=32, intermediate_size=48, depth=1, num_heads=2)
PIXEL_SPACE = [
    Network("PixelDiTT2I", settings(PIXELDIT, image_model="pixeldit_t2i"), PIXELS, TEXT),
    Network(
        "PiD",
        settings(
            PIXELDIT,
            image_model="pid",
            lq_latent_channels=16,
            lq_hidden_dim=16,
            lq_num_res_blocks=1,
            lq_interval=1,
            sr_scale=1,
            latent_spatial_down_factor=8,
        ),
        PIXELS,
        TEXT,
        settings(lq_latent=picture(1, 16, 4, 4), degrade_sigma=constant([0.3])),
    ),
    Network(
        "HiDreamO1",
        settings(image_model="hidream_o1", text_config_overrides=O1_TEXT, vision_config_overrides=O1_VISION),
        (3, 64, 64),
        TEXT,
        settings(text_input_ids=tokens(1, 8, below=151_000)),
    ),
]
