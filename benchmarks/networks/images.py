# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers for pictures, the earlier ones and those of many makers."""

from __future__ import annotations

from .description import (
    Network,
    Shape,
    all_tokens,
    constant,
    picture,
    settings,
    tokens,
    words,
)

TEXT = (6, 32)
L4: Shape = (4, 8, 8)
L16: Shape = (16, 8, 8)
L128: Shape = (128, 4, 4)
ONE_FRAME: Shape = (16, 1, 8, 8)
ROPE = (8, 12, 12)

PIXART = settings(
    hidden_size=96,
    depth=2,
    num_heads=4,
    caption_channels=32,
    model_max_length=12,
    input_size=16,
    pe_interpolation=1,
)
HYDIT = settings(
    hidden_size=64, depth=2, num_heads=2, text_states_dim=32, text_states_dim_t5=24, text_len=8, text_len_t5=8
)
TWO_TEXTS = settings(
    attention_mask=all_tokens(8), conditioning_mt5xl=words(1, 8, 24), attention_mask_mt5xl=all_tokens(8)
)
EARLY = [
    Network(
        "SD3",
        settings(
            in_channels=16,
            patch_size=2,
            out_channels=16,
            depth=1,
            input_size=None,
            adm_in_channels=48,
            num_patches=256,
            pos_embed_max_size=16,
            qk_norm="rms",
            pos_embed_scaling_factor=None,
            x_block_self_attn_layers=[0],
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": 32, "out_features": 64},
            },
        ),
        L16,
        TEXT,
        settings(pooled_output=words(1, 48)),
    ),
    Network(
        "AuraFlow",
        settings(
            cond_seq_dim=32, dim=64, n_layers=2, n_double_layers=1, n_heads=2, global_conddim=64, max_seq=256
        ),
        L4,
        TEXT,
    ),
    Network(
        "PixArtAlpha",
        settings(PIXART, image_model="pixart_alpha", micro_condition=True),
        (4, 34, 34),
        TEXT,
        settings(width=64, height=64),
    ),
    Network(
        "PixArtSigma", settings(PIXART, image_model="pixart_sigma", micro_condition=False), (4, 34, 34), TEXT
    ),
    Network("HunyuanDiT", settings(HYDIT, image_model="hydit"), L4, (8, 32), TWO_TEXTS),
    Network(
        "HunyuanDiT1",
        settings(HYDIT, image_model="hydit1", size_cond=True, use_style_cond=True),
        L4,
        (8, 32),
        TWO_TEXTS,
    ),
]

QWEN = settings(
    image_model="qwen_image",
    in_channels=64,
    num_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=32,
    axes_dims_rope=ROPE,
)
FRAME_REFERENCE = {"reference_latents": [picture(1, 16, 1, 8, 8)]}
KANDINSKY = settings(
    image_model="kandinsky5",
    in_text_dim=32,
    in_text_dim2=24,
    time_dim=48,
    model_dim=64,
    ff_dim=96,
    num_text_blocks=1,
    num_visual_blocks=2,
    axes_dims=ROPE,
)
COSMOS2 = settings(
    image_model="cosmos_predict2",
    max_img_h=32,
    max_img_w=32,
    max_frames=16,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    model_channels=64,
    concat_padding_mask=True,
    crossattn_emb_channels=32,
    pos_emb_cls="rope3d",
    pos_emb_learnable=True,
    use_adaln_lora=True,
    adaln_lora_dim=16,
    num_blocks=2,
    num_heads=2,
    rope_enable_fps_modulation=False,
)
LATER = [
    Network("QwenImage", QWEN, ONE_FRAME, TEXT),
    Network(
        "QwenImage",
        settings(QWEN, default_ref_method="index_timestep_zero"),
        ONE_FRAME,
        TEXT,
        FRAME_REFERENCE,
        variant="edit 2511",
    ),
    Network(
        "QwenImage",
        settings(QWEN, use_additional_t_cond=True, default_ref_method="negative_index"),
        (16, 3, 8, 8),
        TEXT,
        FRAME_REFERENCE,
        variant="layered",
    ),
    Network("MageFlow", settings(QWEN, image_model="mage_flow", in_channels=128), L128, TEXT),
    Network(
        "JoyImage",
        settings(
            image_model="joyimage",
            hidden_size=64,
            num_attention_heads=2,
            text_dim=32,
            num_layers=2,
            rope_dim_list=[8, 12, 12],
        ),
        ONE_FRAME,
        TEXT,
    ),
    Network(
        "Ideogram4",
        settings(
            image_model="ideogram4",
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=32,
            intermediate_size=64,
            adaln_dim=32,
            llm_features_dim=32,
            mrope_section=[6, 5, 5],
        ),
        L128,
        TEXT,
    ),
    Network(
        "Krea2",
        settings(
            image_model="krea2",
            features=256,
            tdim=32,
            txtdim=32,
            heads=2,
            kvheads=1,
            layers=2,
            patch=2,
            channels=16,
            txtlayers=2,
            txtheads=2,
            txtkvheads=2,
        ),
        ONE_FRAME,
        (6, 64),
    ),
    Network(
        "ErnieImage",
        settings(
            image_model="ernie",
            hidden_size=64,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=96,
            text_in_dim=32,
            rope_axes_dim=ROPE,
        ),
        L128,
        TEXT,
    ),
    Network(
        "Lens",
        settings(
            image_model="lens",
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=32,
            enc_hidden_dim=32,
            axes_dims_rope=ROPE,
            selected_layer_index=(0, 1),
        ),
        L128,
        (6, 64),
    ),
    Network(
        "HiDream",
        settings(
            image_model="hidream",
            attention_head_dim=32,
            axes_dims_rope=[16, 8, 8],
            caption_channels=[32, 24],
            max_resolution=[32, 32],
            in_channels=16,
            llama_layers=[0, 1],
            num_attention_heads=2,
            num_routed_experts=4,
            num_activated_experts=2,
            num_layers=1,
            num_single_layers=1,
            out_channels=16,
            patch_size=2,
            text_emb_dim=40,
        ),
        L16,
        TEXT,
        settings(pooled_output=words(1, 40), conditioning_llama3=words(1, 2, 5, 24)),
    ),
    Network(
        "Kandinsky5Image",
        settings(KANDINSKY, visual_embed_dim=64, rope_scale_factor=(1.0, 1.0, 1.0)),
        ONE_FRAME,
        TEXT,
        settings(pooled_output=words(1, 24)),
    ),
    Network("CosmosT2IPredict2", COSMOS2, ONE_FRAME, TEXT),
    Network(
        "Anima",
        settings(COSMOS2, image_model="anima", crossattn_emb_channels=1024),
        ONE_FRAME,
        (6, 1024),
        settings(t5xxl_ids=tokens(5, below=32_000), t5xxl_weights=constant([1.0] * 5)),
    ),
]
IMAGES = [*EARLY, *LATER]
