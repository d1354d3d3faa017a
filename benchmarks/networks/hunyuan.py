# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers of HunyuanVideo's kind, for videos and pictures."""

from __future__ import annotations

from .description import Network, Shape, after_first, clip_vision, picture, settings, words

TEXT = (6, 32)
L2: Shape = (16, 2, 8, 8)
POOLED = {"pooled_output": words(1, 24)}

HUNYUAN = settings(
    image_model="hunyuan_video",
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
    theta=256,
    patch_size=[1, 2, 2],
    qkv_bias=True,
    guidance_embed=True,
    byt5=False,
    meanflow=False,
    use_cond_type_embedding=False,
    vision_in_dim=None,
    meanflow_sum=False,
)
HUNYUAN_IMAGE = settings(
    HUNYUAN,
    vec_in_dim=None,
    in_channels=64,
    out_channels=64,
    patch_size=[1, 1],
    axes_dim=[16, 16],
    byt5=True,
    guidance_embed=False,
)
HUNYUAN15 = settings(
    HUNYUAN,
    vec_in_dim=None,
    in_channels=65,
    out_channels=32,
    patch_size=[1, 1, 1],
    byt5=True,
    use_cond_type_embedding=True,
    vision_in_dim=1152,
    meanflow_sum=True,
    guidance_embed=False,
)
GUIDED = settings(POOLED, guidance=6.0)
GLYPHS = {"conditioning_byt5small": words(1, 5, 1472)}
SEEN = settings(POOLED, GLYPHS, clip_vision_output=clip_vision(last_hidden_state=picture(1, 7, 1152)))
HUNYUANS = [
    Network("HunyuanVideo", HUNYUAN, L2, TEXT, GUIDED),
    Network(
        "HunyuanVideo",
        HUNYUAN,
        L2,
        TEXT,
        settings(GUIDED, guiding_frame_index=0),
        variant="from image, v2 replace",
        keeps_first_frame=True,
        rows=(1,),
    ),
    Network(
        "HunyuanVideo",
        HUNYUAN,
        L2,
        TEXT,
        settings(GUIDED, ref_latent=picture(1, 16, 1, 8, 8)),
        variant="custom, reference",
        cfgs=(1.0,),
        rows=(1,),
    ),
    Network(
        "HunyuanVideoI2V",
        settings(HUNYUAN, in_channels=33),
        L2,
        TEXT,
        settings(GUIDED, concat_latent_image=picture(1, 16, 2, 8, 8), concat_mask=after_first(2, 8)),
    ),
    Network(
        "HunyuanVideoSkyreelsI2V",
        settings(HUNYUAN, in_channels=32),
        L2,
        TEXT,
        settings(GUIDED, concat_latent_image=picture(1, 16, 2, 8, 8)),
    ),
    Network("HunyuanImage21", HUNYUAN_IMAGE, (64, 4, 4), TEXT, GLYPHS),
    Network(
        "HunyuanImage21",
        settings(HUNYUAN_IMAGE, meanflow=True, guidance_embed=True),
        (64, 4, 4),
        TEXT,
        settings(GLYPHS, guidance=6.0),
        variant="distilled",
    ),
    Network(
        "HunyuanImage21Refiner",
        settings(
            HUNYUAN, vec_in_dim=None, in_channels=128, out_channels=64, patch_size=[1, 1, 1], meanflow=True
        ),
        (64, 1, 4, 4),
        TEXT,
        settings(concat_latent_image=picture(1, 32, 1, 4, 4), noise_augmentation=0.1),
    ),
    Network(
        "HunyuanVideo15",
        HUNYUAN15,
        (32, 2, 4, 4),
        TEXT,
        settings(SEEN, concat_latent_image=picture(1, 32, 2, 4, 4)),
    ),
    Network(
        "HunyuanVideo15_SR_Distilled",
        settings(HUNYUAN15, in_channels=98, meanflow=True),
        (32, 2, 4, 4),
        TEXT,
        settings(SEEN, concat_latent_image=picture(1, 66, 2, 4, 4), noise_augmentation=0.1),
    ),
]
