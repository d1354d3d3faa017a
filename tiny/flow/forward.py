# SPDX-License-Identifier: GPL-3.0-or-later
"""The forward pass of core's Flux for training: the same values from the same modules, without the sums in
place that autograd refuses, with the rotary embedding of a grid computed once.

Text tokens of Flux carry no position, so equal ones stay equal through all blocks, and n copies of a token
are one token whose attention logit is raised by log n. :class:`Text` says how often each token counts: a
prompt's 60 and more padding tokens, nearly equal, are trained as a few drawn from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PATCH = 2


@dataclass(frozen=True)
class Text:
    """``context`` [B, n, d], ``pooled`` [B, d_y], and ``log_copies`` [n]: the log of how many tokens each row
    of the context stands for, None where each is one.
    """

    context: Tensor
    pooled: Tensor
    log_copies: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Attention:
    """What attention needs beside queries, keys and values: the rotary embedding's cosines and sines
    [tokens, 64] and a bias of the logits [1, 1, 1, tokens].
    """

    cos: Tensor
    sin: Tensor
    bias: Tensor | None

    def rotated(self, x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack(
            [self.cos * even - self.sin * odd, self.sin * even + self.cos * odd], dim=-1
        ).flatten(-2)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, tokens, heads 128] of q, k, v [B, heads, tokens, 128]."""
        joined = nn.functional.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, self.bias)
        return joined.transpose(1, 2).flatten(2)


def _rotary(network: Any, text: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [text + rows columns, 64]; text stands at the origin (Su et al. 2021, in three
    axes).
    """
    ids = torch.zeros(text + rows * columns, 3, dtype=torch.float64)
    ids[text:, 1] = torch.arange(rows).repeat_interleave(columns)
    ids[text:, 2] = torch.arange(columns).repeat(rows)
    angle = torch.cat(
        [
            ids[:, axis, None] * network.params.theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            for axis, dim in enumerate(network.params.axes_dim)
        ],
        dim=1,
    )
    return angle.cos().float(), angle.sin().float()


def _modulated(x: Tensor, norm: nn.Module, mod: Any) -> Tensor:
    return torch.addcmul(mod.shift, norm(x), 1 + mod.scale)


def _qkv(projected: Tensor, norm: Any, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return norm.query_norm(q), norm.key_norm(k), v


def _double(
    block: Any, img: Tensor, txt: Tensor, vec: Tensor, attention: _Attention
) -> tuple[Tensor, Tensor]:
    img_attn_mod, img_mlp_mod = block.img_mod(vec)
    txt_attn_mod, txt_mlp_mod = block.txt_mod(vec)
    of_img = _qkv(
        block.img_attn.qkv(_modulated(img, block.img_norm1, img_attn_mod)),
        block.img_attn.norm,
        block.num_heads,
    )
    of_txt = _qkv(
        block.txt_attn.qkv(_modulated(txt, block.txt_norm1, txt_attn_mod)),
        block.txt_attn.norm,
        block.num_heads,
    )
    joined = attention(*(torch.cat(pair, dim=2) for pair in zip(of_txt, of_img, strict=True)))
    for_txt, for_img = joined.split([txt.shape[1], img.shape[1]], dim=1)
    img = img + img_attn_mod.gate * block.img_attn.proj(for_img)
    img = img + img_mlp_mod.gate * block.img_mlp(_modulated(img, block.img_norm2, img_mlp_mod))
    txt = txt + txt_attn_mod.gate * block.txt_attn.proj(for_txt)
    txt = txt + txt_mlp_mod.gate * block.txt_mlp(_modulated(txt, block.txt_norm2, txt_mlp_mod))
    return img, txt


def _single(block: Any, x: Tensor, vec: Tensor, attention: _Attention) -> Tensor:
    mod, _ = block.modulation(vec)
    projected = block.linear1(_modulated(x, block.pre_norm, mod))
    qkv, mlp = projected.split([3 * block.hidden_size, block.mlp_hidden_dim_first], dim=-1)
    joined = attention(*_qkv(qkv, block.norm, block.num_heads))
    return x + mod.gate * block.linear2(torch.cat([joined, block.mlp_act(mlp)], dim=-1))


def velocity(network: Any, x: Tensor, t: Tensor, text: Text, guidance: Tensor | None = None) -> Tensor:
    """v [B, 16, H, W] at x [B, 16, H, W] and t [B] in 0..1, by core's ``Flux`` (H and W even)."""
    from comfy.ldm.flux.layers import timestep_embedding

    rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
    patches = x.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH)).permute(0, 2, 4, 1, 3, 5)
    img, txt = network.img_in(patches.flatten(3).flatten(1, 2)), network.txt_in(text.context)
    vec = network.time_in(timestep_embedding(t, 256)) + network.vector_in(text.pooled)
    if guidance is not None:
        vec = vec + network.guidance_in(timestep_embedding(guidance, 256))
    bias = None
    if text.log_copies is not None:
        bias = nn.functional.pad(text.log_copies, (0, img.shape[1]))[None, None, None]
    attention = _Attention(*_rotary(network, txt.shape[1], rows, columns), bias)
    for block in network.double_blocks:
        img, txt = _double(block, img, txt, vec, attention)
    both = torch.cat([txt, img], dim=1)
    for block in network.single_blocks:
        both = _single(block, both, vec, attention)
    out = network.final_layer(both[:, txt.shape[1] :], vec)
    channels = x.shape[1]
    return (
        out.unflatten(2, (channels, PATCH, PATCH))
        .unflatten(1, (rows, columns))
        .permute(0, 3, 1, 4, 2, 5)
        .flatten(4)
        .flatten(2, 3)
    )
