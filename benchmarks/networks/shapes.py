# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers for three-dimensional shapes."""

from __future__ import annotations

from .description import Network, picture, settings

HUNYUAN3D = settings(
    image_model="hunyuan3d2",
    in_channels=64,
    context_in_dim=32,
    hidden_size=64,
    mlp_ratio=2.0,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    qkv_bias=True,
)
SHAPES = [
    Network(
        "Hunyuan3Dv2", settings(HUNYUAN3D, guidance_embed=True), (64, 16), (6, 32), settings(guidance=5.0)
    ),
    Network("Hunyuan3Dv2mini", settings(HUNYUAN3D, guidance_embed=False), (64, 16), (6, 32)),
    Network(
        "Hunyuan3Dv2_1",
        settings(
            image_model="hunyuan3d2_1",
            in_channels=64,
            context_dim=32,
            hidden_size=64,
            mlp_ratio=4.0,
            num_heads=2,
            depth=3,
            qkv_bias=False,
            guidance_cond_proj_dim=None,
            num_moe_layers=1,
        ),
        (64, 16),
        (6, 32),
    ),
    Network(
        "TripoSplat",
        settings(
            image_model="triposplat",
            q_token_length=16,
            model_channels=96,
            cond_channels=32,
            num_blocks=1,
            num_refiner_blocks=1,
            num_head_channels=48,
            cond2_channels=24,
        ),
        [(16, 16), (1, 5)],
        (9, 32),
        settings(reference_latents=[picture(1, 24, 2, 2)]),
    ),
]
