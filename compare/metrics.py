# SPDX-License-Identifier: GPL-3.0-or-later
"""PSNR, SSIM and relative RMS: one number a row of a batch.

Pictures are IMAGEs [B, H, W, C] in [0, 1], compared in fp32 where they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, WINDOW_SIGMA = 11, 1.5
"""Of SSIM, in pixels; smaller pictures have a smaller window."""
K1, K2 = 0.01, 0.03
ROWS = 8
"""Rows that are compared at a time, so that a video needs no more memory than a few of its pictures."""


def deviation(a: Tensor, b: Tensor) -> Tensor:
    """RMS(a - b) / RMS(b), [B], of pictures or latents [B, ...]: what tolerances are given in."""
    rows = [difference.float().flatten(1).square().mean(1).sqrt() for difference in (a - b, b)]
    return torch.where(rows[0] == 0, rows[0], rows[0] / rows[1])


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal to noise ratio -10 log10 mean (a - b)^2, [B], in dB; infinite for equal pictures."""
    return -10 * (a.float() - b.float()).square().flatten(1).mean(1).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of Wang et al. (2004), eq. 13, [B]: 1 for equal pictures, 0 and less for unlike.

    Gaussian windows of 11 pixels, sigma 1.5, that lie within the picture; the mean over windows and channels.
    """
    pairs = zip(a.float().split(ROWS), b.float().split(ROWS), strict=True)
    return torch.cat([_ssim(x.movedim(-1, 1), y.movedim(-1, 1)) for x, y in pairs])


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """[B] of [B, C, H, W]."""
    mu_x, mu_y = _weighted(x), _weighted(y)
    var_x, var_y = _weighted(x * x) - mu_x**2, _weighted(y * y) - mu_y**2
    cov = _weighted(x * y) - mu_x * mu_y
    c1, c2 = K1**2, K2**2
    similarity = (2 * mu_x * mu_y + c1) * (2 * cov + c2)
    similarity = similarity / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return similarity.flatten(1).mean(1)


def _weighted(x: Tensor) -> Tensor:
    """Means of [B, C, H, W] over the windows within it."""
    for dim in (-2, -1):
        size = min(WINDOW, (x.shape[dim] - 1) // 2 * 2 + 1)
        place = torch.arange(size, device=x.device) - size // 2
        weights = torch.exp(-(place**2) / (2 * WINDOW_SIGMA**2)).to(x.dtype)
        shape = [size, 1] if dim == -2 else [1, size]
        kernel = (weights / weights.sum()).view(1, 1, *shape).expand(x.shape[1], -1, -1, -1)
        x = conv2d(x, kernel, groups=x.shape[1])
    return x
