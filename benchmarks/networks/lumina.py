# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers of Lumina's kind."""

from __future__ import annotations

from .description import (
    Network,
    Shape,
    all_tokens,
    clip_vision,
    picture,
    settings,
    words,
)

TEXT = (6, 32)
ATTENTION = {"attention_mask": all_tokens(6)}
L16: Shape = (16, 8, 8)
PIXELS: Shape = (3, 32, 32)
REFERENCE = {"reference_latents": [picture(1, 16, 8, 8)]}
ROPE = (8, 12, 12)

LUMINA = settings(
    image_model="lumina2",
    patch_size=2,
    in_channels=16,
    dim=96,
    cap_feat_dim=32,
    n_layers=2,
    n_refiner_layers=1,
    qk_norm=True,
    n_heads=3,
    n_kv_heads=3,
    axes_dims=[8, 12, 12],
    axes_lens=[64, 64, 64],
    rope_theta=256.0,
    ffn_dim_multiplier=2.0,
    multiple_of=16,
)
Z_IMAGE = settings(
    LUMINA,
    dim=288,
    n_heads=9,
    n_kv_heads=9,
    z_image_modulation=True,
    time_scale=1000.0,
    pad_tokens_multiple=8,
)
OMNI = settings(
    REFERENCE,
    clip_vision_outputs=[clip_vision(image_sizes=[(3, 32, 32)], last_hidden_state=picture(1, 4, 24))],
    reference_latents_text_embeds=[words(1, 6, 32)],
)
OMNIGEN = settings(
    hidden_size=96,
    num_layers=2,
    num_refiner_layers=1,
    num_attention_heads=3,
    num_kv_heads=1,
    multiple_of=16,
    axes_lens=[64, 64, 64],
    axes_dim_rope=ROPE,
    timestep_scale=1000.0,
)
BOOGU = settings(OMNIGEN, image_model="boogu", instruction_feat_dim=32, num_double_stream_layers=1)
LUMINAS = [
    Network("Lumina2", settings(LUMINA, n_kv_heads=1), L16, TEXT, ATTENTION),
    Network("ZImage", Z_IMAGE, L16, TEXT),
    Network("ZImage", settings(Z_IMAGE, siglip_feat_dim=24), L16, TEXT, OMNI, variant="omni"),
    Network(
        "ZImagePixelSpace",
        settings(
            Z_IMAGE,
            image_model="zimage_pixel",
            patch_size=8,
            in_channels=3,
            decoder_in_channels=192,
            decoder_hidden_size=32,
            decoder_num_res_blocks=1,
            decoder_max_freqs=4,
            use_x0=True,
        ),
        PIXELS,
        TEXT,
    ),
    Network("Omnigen2", settings(OMNIGEN, image_model="omnigen2", text_feat_dim=32), L16, TEXT, ATTENTION),
    Network("Boogu", BOOGU, L16, TEXT, ATTENTION),
    Network("Boogu", BOOGU, L16, TEXT, settings(ATTENTION, REFERENCE), variant="reference"),
]
