# SPDX-License-Identifier: GPL-3.0-or-later
"""Sixteen-channel latents in closed form: the low frequencies of every 8x8 block.

A block of a picture in [0, 1] is written in the orthonormal axes of luma and two chromas and in the
orthonormal two-dimensional DCT-II, frequencies (u, v) in 0..7. The latents are the ten coefficients of luma
with u + v <= 3 and the three of each chroma with u + v <= 1, centred on mid-grey and scaled:

    z = (C (I - 1/2))_{a, u, v} / s_{a, u, v}

They hold 99 % of the variance of this world's blocks, and :func:`decode` (the transposed transform) gives a
picture back without training: blurred, but with every shape in its place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 8
CHANNELS = 16
AXES = ((1, 1, 1), (1, 0, -1), (1, -2, 1))
"""Luma and two chromas, before each is divided by its length."""
HIGHEST = (3, 1, 1)
"""Largest u + v that is kept, for each axis."""
SCALE_LUMA, SCALE_CHROMA, SCALE_DETAIL = 4.8, 1.0, 0.6
"""Of luma's mean, of the chromas' means and of all other coefficients."""


def basis() -> Tensor:
    """[16, 3, 8, 8]: row k holds the picture that coefficient k weighs, of length one."""
    axes = torch.tensor(AXES, dtype=torch.float64)
    axes /= axes.norm(dim=1, keepdim=True)
    frequency = torch.arange(BLOCK, dtype=torch.float64)
    dct = torch.cos(math.pi / BLOCK * frequency[:, None] * (frequency[None, :] + 0.5)) * (2 / BLOCK) ** 0.5
    dct[0] /= 2**0.5
    rows = [
        torch.einsum("c,i,j->cij", axes[a], dct[u], dct[v])
        for a, highest in enumerate(HIGHEST)
        for u in range(highest + 1)
        for v in range(highest + 1 - u)
    ]
    return torch.stack(rows).float()


def scales() -> Tensor:
    """[16]: what each coefficient is divided by."""
    counts = [(highest + 1) * (highest + 2) // 2 for highest in HIGHEST]
    return torch.tensor(
        [
            SCALE_DETAIL if k else (SCALE_CHROMA if a else SCALE_LUMA)
            for a, count in enumerate(counts)
            for k in range(count)
        ]
    )


def encode(pictures: Tensor) -> Tensor:
    """Latents [B, 16, H/8, W/8] of pictures [B, 3, H, W] in [0, 1]."""
    weights = basis() / scales()[:, None, None, None]
    return torch.nn.functional.conv2d(pictures - 0.5, weights.to(pictures), stride=BLOCK)


def decode(latents: Tensor) -> Tensor:
    """Pictures [B, 3, 8H, 8W], about in [0, 1], of latents [B, 16, H, W]: what the kept frequencies show."""
    weights = basis() * scales()[:, None, None, None]
    return torch.nn.functional.conv_transpose2d(latents, weights.to(latents), stride=BLOCK) + 0.5
