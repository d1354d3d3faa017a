# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks of the embedded pipeline, in the classes and configurations that diffusers and ComfyUI both
build.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ..students.guidance import GuidanceInput

TEXT_WIDTH = 64
GUIDANCE = GuidanceInput(width=256, offset=1.0, scale_range=(1.0, 8.0))
"""The student's guidance input: w = g - 1 as in Meng et al., g from 1 to 8."""


def unet() -> UNet2DConditionModel:
    """The teacher's denoiser."""
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        sample_size=12,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=3,
    )


def text_encoder(generator: torch.Generator) -> CLIPTextModel:
    """A CLIP text model over the whole vocabulary of SD's tokenizer.

    The token table is random and stays as it is: captions use about forty of its 49,408 rows, which are
    nearly orthogonal as they are. Its entries are exact in float8, which is how the file holds them.
    """
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
            projection_dim=TEXT_WIDTH,
        )
    )
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table.copy_(torch.randn(table.shape, generator=generator).mul(0.5).to(torch.float8_e4m3fn).float())
    table.requires_grad_(False)
    return model


def autoencoder() -> AutoencoderTiny:
    """TAESD's shape: three halvings of 64 channels, no normalisation."""
    return AutoencoderTiny(latent_channels=4, scaling_factor=1.0)


def scheduler() -> DDIMScheduler:
    """Scaled-linear betas that end at sigma 66: the start of sampling says nothing of a picture's
    background.
    """
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
