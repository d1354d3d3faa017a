# SPDX-License-Identifier: GPL-3.0-or-later
"""The teacher's loss: flow matching with captions dropped at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .forward import Text, velocity

LOGIT_MEAN, LOGIT_STD = 0.5, 1.3
"""Training times are logistic(N(0.5, 1.3)): between 0.06 and 0.95 in nine cases of ten. Early times decide
what stands where, late ones where its corners are."""
CAPTION_DROP = 0.1
WORDS = 14
"""Tokens that captions of this world use at most, with the end token; the rest is padding."""
PADDING_DRAWN = 2
"""Padding tokens that stand for all of a prompt in training, drawn anew for every update."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """The training set: latents [n, 16, 12, 12], the row of each picture's caption [n], and what the text
    encoder says of each caption: contexts [m, 77, 64] and pooled [m, 64]; row 0 is the empty caption.
    """

    latents: Tensor
    caption: Tensor
    context: Tensor
    pooled: Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Text]:
        """Latents and captions of ``size`` random pictures, a tenth of the captions empty."""
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        kept = torch.rand(size, generator=generator) >= CAPTION_DROP
        captions = self.caption[rows] * kept
        length = self.context.shape[1]
        padding = torch.randint(WORDS, length, (PADDING_DRAWN,), generator=generator)
        log_copies = torch.zeros(WORDS + PADDING_DRAWN)
        log_copies[WORDS:] = math.log((length - WORDS) / PADDING_DRAWN)
        context = self.context[captions][:, torch.cat([torch.arange(WORDS), padding])]
        return self.latents[rows].float(), Text(context.float(), self.pooled[captions].float(), log_copies)


def flow_matching_loss(network: Any, x: Tensor, text: Text, generator: torch.Generator) -> Tensor:
    """Mean squared error of v(x_t, t, text) to eps - x at x_t = (1 - t) x + t eps (Lipman et al. 2023; times
    as in Esser et al. 2024).
    """
    t = torch.sigmoid(LOGIT_MEAN + LOGIT_STD * torch.randn(len(x), generator=generator))
    eps = torch.randn(x.shape, generator=generator)
    noised = torch.lerp(x, eps, t[:, None, None, None])
    return nn.functional.mse_loss(velocity(network, noised, t, text), eps - x)
