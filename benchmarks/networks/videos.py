# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers for videos, of many makers; some draw sound as well."""

from __future__ import annotations

from .description import Network, Shape, all_tokens, picture, settings, words
from .images import COSMOS2, KANDINSKY

TEXT = (6, 32)
L2: Shape = (16, 2, 8, 8)
L3: Shape = (16, 3, 8, 8)
ATTENTION = {"attention_mask": all_tokens(6)}
POOLED = {"pooled_output": words(1, 24)}

LTX = settings(
    image_model="ltxv",
    num_layers=2,
    cross_attention_dim=64,
    attention_head_dim=32,
    num_attention_heads=2,
    caption_channels=32,
)
LTXAV = settings(
    LTX,
    image_model="ltxav",
    audio_cross_attention_dim=32,
    audio_attention_head_dim=16,
    audio_num_attention_heads=2,
    connector_attention_head_dim=16,
    connector_num_attention_heads=2,
    connector_num_layers=1,
)
FRAME_RATE = settings(ATTENTION, frame_rate=25)
SMALL = [
    Network(
        "GenmoMochi",
        settings(
            image_model="mochi_preview",
            depth=2,
            patch_size=2,
            num_heads=2,
            hidden_size_x=64,
            hidden_size_y=48,
            mlp_ratio_x=192.0,
            mlp_ratio_y=2.0,
            learn_sigma=False,
            in_channels=12,
            qk_norm=True,
            qkv_bias=False,
            out_bias=True,
            attn_drop=0.0,
            posenc_preserve_area=True,
            timestep_scale=1000.0,
            use_t5=True,
            t5_feat_dim=32,
            t5_token_length=8,
        ),
        (12, 2, 8, 8),
        (8, 32),
        settings(attention_mask=all_tokens(8)),
    ),
    Network("LTXV", LTX, (128, 3, 4, 4), TEXT, FRAME_RATE),
    Network("LTXV", LTX, (128, 3, 4, 4), TEXT, FRAME_RATE, variant="from image", keeps_first_frame=True),
    Network("LTXAV", LTXAV, [(128, 3, 4, 4), (8, 6, 16)], (6, 64), FRAME_RATE),
    Network(
        "MiniMaxH3",
        settings(
            image_model="minimax_h3",
            hidden_size=64,
            num_layers=2,
            token_refiner_num_layers=1,
            num_attention_heads=2,
            attention_head_dim=128,
            ffn_hidden_size=96,
            text_dim=32,
            timestep_input_dim=32,
            time_embed_hidden_size=64,
            time_embed_dim=32,
        ),
        [(24, 2, 4, 4), (32, 2, 4)],
        TEXT,
        rows=(1,),
    ),
    Network("Kandinsky5", settings(KANDINSKY, visual_embed_dim=132), L3, TEXT, POOLED),
]

COSMOS = settings(
    image_model="cosmos",
    max_img_h=32,
    max_img_w=32,
    max_frames=16,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    model_channels=64,
    block_config="FA-CA-MLP",
    concat_padding_mask=True,
    pos_emb_cls="rope3d",
    pos_emb_learnable=False,
    pos_emb_interpolation="crop",
    block_x_format="THWBD",
    affline_emb_norm=True,
    use_adaln_lora=True,
    adaln_lora_dim=16,
    num_blocks=2,
    num_heads=2,
    crossattn_emb_channels=32,
    extra_per_block_abs_pos_emb=True,
    extra_per_block_abs_pos_emb_type="learnable",
)
COG = settings(
    image_model="cogvideox",
    num_attention_heads=2,
    attention_head_dim=32,
    time_embed_dim=32,
    text_embed_dim=32,
    num_layers=2,
    sample_width=16,
    sample_height=16,
    sample_frames=9,
    max_text_seq_length=8,
    use_rotary_positional_embeddings=True,
)
SEED = settings(
    image_model="seedvr2",
    vid_dim=64,
    heads=2,
    head_dim=32,
    rope_dim=32,
    num_layers=2,
    mm_layers=1,
    norm_eps=1e-5,
    mlp_type="swiglu",
    txt_in_dim=32,
    expand_ratio=2,
)
OTHERS = [
    Network("CosmosT2V", COSMOS, L2, TEXT),
    Network("CosmosI2V", settings(COSMOS, in_channels=17), L2, TEXT, keeps_first_frame=True),
    Network("CosmosI2VPredict2", settings(COSMOS2, in_channels=17), L2, TEXT, keeps_first_frame=True),
    Network("CogVideoX_T2V", COG, L2, (8, 32)),
    Network(
        "CogVideoX_I2V",
        settings(COG, in_channels=32, ofs_embed_dim=32),
        L2,
        (8, 32),
        settings(concat_latent_image=picture(1, 16, 2, 8, 8)),
    ),
    Network(
        "CogVideoX_Inpaint",
        settings(COG, in_channels=48),
        L2,
        (8, 32),
        settings(concat_latent_image=picture(1, 32, 2, 8, 8)),
    ),
    Network("SeedVR2", SEED, L2, (4, 32), settings(condition=picture(1, 17, 2, 8, 8))),
]

VIDEOS = [*SMALL, *OTHERS]
