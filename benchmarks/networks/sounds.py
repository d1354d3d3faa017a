# SPDX-License-Identifier: GPL-3.0-or-later
"""Transformers for music and sound."""

from __future__ import annotations

from torch import Tensor

from .description import Network, settings, tokens, words

AUDIO_DIT = settings(
    audio_model="dit1.0",
    embed_dim=64,
    cond_token_dim=768,
    project_cond_tokens=True,
    depth=2,
    num_heads=2,
    input_concat_dim=0,
)


def seconds(*names: str, features: str = "learned") -> dict[str, Tensor]:
    """Random weights of Stable Audio's embeddings of seconds, which its classes take from the checkpoint."""
    import torch
    from comfy.ldm.audio.embedders import NumberConditioner

    embedder = NumberConditioner(768, min_val=0, max_val=512, fourier_features_type=features)
    generator = torch.Generator().manual_seed(5)
    return {
        f"conditioner.conditioners.{name}.{key}": 0.1 * torch.randn(like.shape, generator=generator)
        for name in names
        for key, like in embedder.state_dict().items()
    }


SOUNDS = [
    Network(
        "StableAudio",
        settings(AUDIO_DIT, io_channels=64, global_cond_dim=1536, timestep_features_type="learned"),
        (64, 24),
        (6, 768),
        settings(seconds_start=0, seconds_total=20),
        weights=lambda: seconds("seconds_start", "seconds_total"),
    ),
    Network(
        "StableAudio3",
        settings(
            AUDIO_DIT,
            io_channels=256,
            global_cond_dim=768,
            timestep_features_type="expo",
            local_add_cond_dim=257,
            global_cond_shared_embed=True,
            global_cond_type="adaLN",
            attn_kwargs={"qk_norm": "rms", "differential": False},
            norm_type="rms_norm",
        ),
        (256, 24),
        (6, 768),
        settings(seconds_total=20),
        weights=lambda: seconds("seconds_total", features="expo"),
    ),
    Network(
        "ACEStep",
        settings(
            audio_model="ace",
            attention_head_dim=32,
            in_channels=8,
            inner_dim=64,
            max_height=16,
            max_position=512,
            max_width=512,
            mlp_ratio=2.0,
            num_attention_heads=2,
            num_layers=2,
            out_channels=8,
            patch_size=[16, 1],
            text_embedding_dim=32,
            ssl_encoder_depths=[1, 1],
            ssl_latent_dims=[32, 32],
            lyric_encoder_vocab_size=64,
            lyric_hidden_size=1024,
        ),
        (8, 16, 24),
        (6, 32),
        settings(conditioning_lyrics=tokens(1, 5, below=64), lyrics_strength=1.0),
    ),
    Network(
        "ACEStep15",
        settings(
            audio_model="ace1.5",
            hidden_size=64,
            intermediate_size=96,
            num_heads=2,
            num_kv_heads=2,
            head_dim=32,
            encoder_hidden_size=64,
            encoder_intermediate_size=96,
            encoder_num_heads=2,
            num_dit_layers=2,
            num_lyric_layers=1,
            num_timbre_layers=1,
            num_tokenizer_layers=1,
            text_hidden_dim=32,
            fsq_dim=64,
            sliding_window=8,
        ),
        (64, 20),
        (6, 32),
        settings(conditioning_lyrics=words(1, 5, 32)),
    ),
]
