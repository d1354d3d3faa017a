# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers of WAN's kind."""

from __future__ import annotations

from typing import Any

from .description import Network, Shape, after_first, clip_vision, picture, settings

TEXT = (6, 32)
L3: Shape = (16, 3, 8, 8)

WAN = settings(
    image_model="wan2.1",
    model_type="t2v",
    dim=64,
    ffn_dim=96,
    freq_dim=32,
    text_dim=32,
    num_heads=2,
    num_layers=2,
    patch_size=(1, 2, 2),
    text_len=8,
)
CLIP = {"clip_vision_output": clip_vision(penultimate_hidden_states=picture(1, 5, 1280))}
START = settings(concat_latent_image=picture(1, 16, 3, 8, 8), concat_mask=after_first(3, 8))
CAMERA = {"camera_conditions": picture(1, 24, 3, 64, 64)}
REFERENCE = {"reference_latents": [picture(1, 16, 1, 8, 8)]}
POSE = settings(REFERENCE, CLIP, pose_video_latent=picture(1, 16, 3, 4, 4))
SPEECH = settings(REFERENCE, audio_embed=picture(1, 3, 8, 5, 1280))


def wan(
    family: str,
    model_type: str,
    *,
    variant: str = "",
    latent: Shape = L3,
    conditioning: dict[str, Any] | None = None,
    keeps_first_frame: bool = False,
    starts_from_latent: bool = False,
    **own: Any,
) -> Network:
    return Network(
        family,
        settings(WAN, own, model_type=model_type),
        latent,
        TEXT,
        conditioning or {},
        variant,
        keeps_first_frame=keeps_first_frame,
        starts_from_latent=starts_from_latent,
    )


WANS = [
    wan("WAN21_T2V", "t2v"),
    wan(
        "WAN21_T2V",
        "t2v",
        variant="context latents",
        conditioning={"context_latents": [picture(1, 16, 1, 8, 8)]},
    ),
    wan("WAN21_CausalAR_T2V", "t2v", causal_ar=True),
    wan("WAN22_T2V", "t2v", latent=(48, 3, 4, 4), in_dim=48, out_dim=48),
    wan(
        "WAN22_T2V",
        "t2v",
        variant="from image",
        latent=(48, 3, 4, 4),
        keeps_first_frame=True,
        in_dim=48,
        out_dim=48,
    ),
    wan("WAN21_I2V", "i2v", conditioning=settings(START, CLIP), in_dim=36),
    wan(
        "WAN21_FunControl2V",
        "i2v",
        in_dim=48,
        in_dim_ref_conv=16,
        conditioning=settings(REFERENCE, CLIP, concat_latent_image=picture(1, 32, 3, 8, 8)),
    ),
    wan(
        "WAN21_Vace",
        "vace",
        vace_layers=1,
        vace_in_dim=96,
        conditioning=settings(
            vace_frames=[picture(1, 32, 3, 8, 8)], vace_mask=[picture(1, 64, 3, 8, 8)], vace_strength=[0.8]
        ),
    ),
    wan(
        "WAN21_Camera",
        "camera",
        in_dim=32,
        conditioning=settings(CAMERA, CLIP, concat_latent_image=picture(1, 16, 3, 8, 8)),
    ),
    wan("WAN22_Camera", "camera_2.2", conditioning=settings(START, CAMERA), in_dim=36),
    wan(
        "WAN22_S2V",
        "s2v",
        cond_dim=16,
        audio_dim=16,
        audio_inject_layers=[0],
        conditioning=settings(
            REFERENCE,
            audio_embed=picture(1, 25, 16, 12),
            reference_motion=picture(1, 16, 19, 8, 8),
            control_video=picture(1, 16, 3, 8, 8),
        ),
    ),
    wan("WAN21_HuMo", "humo", variant="1.7B", conditioning=SPEECH, in_dim=16, audio_token_num=16),
    wan("WAN21_HuMo", "humo", variant="17B", conditioning=SPEECH, in_dim=36, audio_token_num=16),
    wan(
        "WAN22_Animate",
        "animate",
        in_dim=36,
        conditioning=settings(START, CLIP, pose_video_latent=picture(1, 16, 2, 8, 8)),
    ),
    wan("WAN21_FlowRVS", "flow_rvs", starts_from_latent=True),
    wan("WAN21_SCAIL", "scail", conditioning=POSE, in_dim=20),
    wan(
        "WAN21_SCAIL2",
        "scail2",
        in_dim=20,
        conditioning=settings(
            POSE,
            driving_mask_28ch=picture(1, 3, 28, 4, 4),
            ref_mask_28ch=picture(1, 4, 28, 8, 8),
            ref_mask_flag=True,
        ),
    ),
    wan(
        "WAN22_WanDancer",
        "wandancer",
        in_dim=36,
        audio_inject_layers=[0],
        music_dim=16,
        music_heads=2,
        music_latent_dim=16,
        conditioning=settings(START, CLIP, audio_embed=picture(1, 12, 35), fps=30.0, audio_inject_scale=1.0),
    ),
]
