# SPDX-License-Identifier: GPL-3.0-or-later
"""Convolutional networks: Stable Diffusion's UNets, their video forms, Stable Cascade."""

from __future__ import annotations

from typing import Any

import torch

from .description import Network, clip_vision, mask, picture, settings, words

LATENT, TEXT = (4, 8, 8), (6, 32)
IMAGE = picture(1, 4, 8, 8)


def unet(linear: bool, depth: tuple[int, ...] = (1, 1), **own: Any) -> dict[str, Any]:
    """A UNet of one residual block and ``depth`` transformer blocks a level, as core detects it."""
    base = settings(
        use_checkpoint=False,
        image_size=32,
        use_spatial_transformer=True,
        legacy=False,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=[1] * len(depth),
        channel_mult=[1, 2, 2][: len(depth)],
        transformer_depth=list(depth),
        transformer_depth_output=[blocks for blocks in depth for _ in (0, 1)],
        transformer_depth_middle=depth[-1],
        context_dim=TEXT[1],
        use_linear_in_transformer=linear,
        num_heads=-1,
        num_head_channels=16,
        use_temporal_attention=False,
        use_temporal_resblock=False,
        adm_in_channels=None,
    )
    return settings(base, {"num_classes": "sequential"} if own.get("adm_in_channels") else {}, own)


def xl(adm: int = 2816, depth: tuple[int, ...] = (0, 1, 2), **own: Any) -> dict[str, Any]:
    return unet(True, depth, adm_in_channels=adm, **own)


def unclip(width: int) -> dict[str, Any]:
    output = clip_vision(image_embeds=words(1, width))
    return {
        "unclip_conditioning": [{"clip_vision_output": output, "strength": 1.0, "noise_augmentation": 0.1}]
    }


def flags(*names: str) -> Any:
    """Empty tensors by which core tells a checkpoint's kind."""
    return lambda: {name: torch.zeros(1) for name in names}


def zero123_projection() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "cc_projection.weight": 0.03 * torch.randn(768, 772, generator=g),
        "cc_projection.bias": torch.zeros(768),
    }


POOLED = {"pooled_output": words(1, 1280)}
SD15 = [
    Network("SD15", unet(False), LATENT, TEXT),
    Network(
        "SD15",
        unet(False, in_channels=9),
        LATENT,
        TEXT,
        variant="inpainting",
        conditioning=settings(concat_latent_image=IMAGE, concat_mask=mask(1, 1, 8, 8)),
    ),
    Network(
        "SD15_instructpix2pix", unet(False, in_channels=8), LATENT, TEXT, settings(concat_latent_image=IMAGE)
    ),
    Network(
        "Stable_Zero123",
        unet(False, in_channels=8, context_dim=768),
        LATENT,
        (1, 772),
        settings(concat_latent_image=IMAGE),
        weights=zero123_projection,
    ),
    Network("SD20", unet(True), LATENT, TEXT),
    Network("SD21UnclipL", unet(True, adm_in_channels=1536), LATENT, TEXT, unclip(768)),
    Network("SD21UnclipH", unet(True, adm_in_channels=2048), LATENT, TEXT, unclip(1024)),
    Network("LotusD", unet(True, adm_in_channels=4), LATENT, TEXT),
    Network(
        "SD_X4Upscaler",
        unet(True, in_channels=7, num_classes=1000, disable_self_attentions=[True, False]),
        LATENT,
        TEXT,
        settings(concat_image=picture(1, 3, 8, 8), noise_augmentation=0.1),
    ),
]
SDXL = [
    Network("SDXL", xl(), LATENT, TEXT, POOLED),
    Network(
        "SDXL", xl(), LATENT, TEXT, POOLED, variant="v, zero terminal SNR", weights=flags("v_pred", "ztsnr")
    ),
    Network("SDXL", xl(), LATENT, TEXT, POOLED, variant="EDM", weights=flags("edm_mean", "edm_std")),
    Network("SDXLRefiner", xl(2560), LATENT, TEXT, POOLED),
    Network(
        "SDXL_instructpix2pix", xl(in_channels=8), LATENT, TEXT, settings(POOLED, concat_latent_image=IMAGE)
    ),
    Network("SSD1B", xl(depth=(0, 1, 1)), LATENT, TEXT, POOLED),
    Network("Segmind_Vega", xl(depth=(0, 1, 1)), LATENT, TEXT, POOLED),
    Network("KOALA_700M", xl(), LATENT, TEXT, POOLED),
    Network("KOALA_1B", xl(), LATENT, TEXT, POOLED),
]


def temporal(adm: int) -> dict[str, Any]:
    return unet(
        True,
        adm_in_channels=adm,
        in_channels=8,
        use_temporal_attention=True,
        use_temporal_resblock=True,
        extra_ff_mix_layer=True,
        use_spatial_context=True,
        merge_factor=0.0,
        merge_strategy="learned_with_images",
        video_kernel_size=[3, 1, 1],
        disable_temporal_crossattention=False,
    )


def of_frames(family: str, adm: int, variant: str = "", **view: Any) -> Network:
    return Network(
        family,
        temporal(adm),
        LATENT,
        (1, 32),
        settings(view, concat_latent_image=IMAGE),
        variant=variant,
        frames_as_rows=3,
        rows=(1,),
    )


SVD = [
    of_frames("SVD_img2vid", 768),
    of_frames("SV3D_u", 256),
    of_frames("SV3D_p", 1280, elevation=5.0, azimuth=10.0),
    of_frames("SV3D_p", 1280, "orbit", elevation=[5.0, 10.0, 15.0], azimuth=[0.0, 120.0, 240.0]),
]
CASCADE = [
    Network(
        "Stable_Cascade_C",
        settings(
            stable_cascade_stage="c",
            c_cond=32,
            c_hidden=[32, 32],
            nhead=[2, 2],
            blocks=[[1, 1], [1, 1]],
            block_repeat=[[1, 1], [1, 1]],
            c_clip_text=32,
            c_clip_text_pooled=24,
        ),
        (16, 8, 8),
        TEXT,
        settings(pooled_output=words(1, 24)),
    ),
    Network(
        "Stable_Cascade_B",
        settings(
            stable_cascade_stage="b",
            c_cond=32,
            c_hidden=[16, 32, 32, 32],
            nhead=[-1, -1, 2, 2],
            blocks=[[1] * 4, [1] * 4],
            block_repeat=[[1] * 4, [1] * 4],
            c_clip=24,
        ),
        (4, 16, 16),
        TEXT,
        settings(pooled_output=words(1, 24), stable_cascade_prior=picture(1, 16, 4, 4)),
    ),
]
UNETS = [*SD15, *SDXL, *SVD, *CASCADE]
