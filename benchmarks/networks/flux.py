# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers of Flux's kind."""

from __future__ import annotations

import torch

from .description import (
    Network,
    Shape,
    mask,
    picture,
    settings,
    words,
)

TEXT = (6, 32)
L16: Shape = (16, 8, 8)
L128: Shape = (128, 4, 4)
PIXELS: Shape = (3, 32, 32)

FLUX = settings(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    vec_in_dim=24,
    context_in_dim=32,
    hidden_size=64,
    mlp_ratio=2.0,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    axes_dim=[8, 12, 12],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    txt_ids_dims=[],
    guidance_embed=True,
)
FLUX2 = settings(
    FLUX,
    image_model="flux2",
    in_channels=128,
    out_channels=128,
    vec_in_dim=None,
    patch_size=1,
    axes_dim=[8, 8, 8, 8],
    global_modulation=True,
    mlp_silu_act=True,
    qkv_bias=False,
    ops_bias=False,
    default_ref_method="index",
    txt_ids_dims=[3],
)
CHROMA = settings(
    {key: value for key, value in FLUX.items() if key != "guidance_embed"},
    image_model="chroma",
    in_channels=64,
    out_channels=64,
    in_dim=64,
    out_dim=64,
    hidden_dim=48,
    n_layers=2,
)
RADIANCE = settings(
    CHROMA,
    image_model="chroma_radiance",
    in_channels=3,
    out_channels=3,
    patch_size=8,
    nerf_hidden_size=16,
    nerf_mlp_ratio=2,
    nerf_depth=1,
    nerf_max_freqs=4,
    nerf_tile_size=0,
    nerf_final_head_type="conv",
    nerf_embedder_dtype=torch.float32,
    use_x0=True,
    use_sequential_txt_ids=False,
)
POOLED = {"pooled_output": words(1, 24)}
GUIDED = settings(POOLED, guidance=3.5)
FLUXES = [
    Network("Flux", FLUX, L16, TEXT, GUIDED),
    Network(
        "Flux",
        FLUX,
        L16,
        TEXT,
        settings(GUIDED, reference_latents=[picture(1, 16, 8, 8), picture(1, 16, 4, 8)]),
        variant="Kontext",
    ),
    Network(
        "FluxInpaint",
        settings(FLUX, in_channels=96),
        L16,
        TEXT,
        settings(GUIDED, concat_latent_image=picture(1, 16, 8, 8), concat_mask=mask(1, 1, 64, 64)),
    ),
    Network("FluxSchnell", settings(FLUX, guidance_embed=False), L16, TEXT, POOLED),
    Network(
        "LongCatImage", settings(FLUX, guidance_embed=False, vec_in_dim=None, txt_ids_dims=[1, 2]), L16, TEXT
    ),
    Network("Flux2", FLUX2, L128, TEXT, settings(guidance=3.5)),
    Network(
        "Flux2",
        FLUX2,
        L128,
        TEXT,
        settings(guidance=3.5, reference_latents=[picture(1, 128, 4, 4)]),
        variant="reference",
    ),
    Network("Chroma", CHROMA, L16, TEXT),
    Network("ChromaRadiance", RADIANCE, PIXELS, TEXT),
]
