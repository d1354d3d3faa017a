# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompt accuracy of the flow model, sampled by Euler on core's ``simple`` schedule and judged by the
reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .. import evaluate, scene
from .forward import Text, velocity
from .network import LATENT

SHIFT = 1.15
"""Core's default for Flux: sigma = e^s / (e^s + 1/t - 1)."""
BATCH = 50
STEPS = 20

Decoder = Callable[[Tensor], Tensor]
"""Pictures [B, 3, 96, 96] in [0, 1] of latents [B, 16, 12, 12]."""


def simple_sigmas(steps: int, shift: float = SHIFT) -> list[float]:
    """sigma_0 = 1 > ... > sigma_n = 0 at evenly spaced times (core's ``simple``)."""
    times = [1 - i / steps for i in range(steps)]
    return [math.exp(shift) / (math.exp(shift) + 1 / t - 1) for t in times] + [0.0]


def guided_velocity(network: Any, x: Tensor, t: Tensor, text: Text, empty: Text, g: float) -> Tensor:
    """v_empty + g (v_text - v_empty); one pass where g = 1."""
    if g == 1:
        return velocity(network, x, t, text)
    both = Text(
        torch.cat([text.context, empty.context.expand_as(text.context)]),
        torch.cat([text.pooled, empty.pooled.expand_as(text.pooled)]),
    )
    with_text, without = velocity(network, torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
    return torch.lerp(without, with_text, g)


def euler(network: Any, noise: Tensor, text: Text, empty: Text, g: float, steps: int = STEPS) -> Tensor:
    """Latents of noise [B, 16, H, W]: x += (sigma' - sigma) v."""
    x = noise
    for sigma, sigma_down in pairwise(simple_sigmas(steps)):
        v = guided_velocity(network, x, torch.full((len(x),), sigma), text, empty, g)
        x = x + (sigma_down - sigma) * v
    return x


def noise_of(seed: int, rows: Sequence[int]) -> Tensor:
    """[n, 16, 12, 12]; row i depends on (seed, i) alone."""
    return torch.stack(
        [torch.randn(LATENT, generator=torch.Generator().manual_seed(seed * 1_000_003 + i)) for i in rows]
    )


@torch.inference_mode()
def draw_captions(
    network: Any, text: Text, empty: Text, g: float, decode: Decoder, seed: int
) -> list[Image.Image]:
    """One picture for each row of ``text``."""
    images: list[Image.Image] = []
    for start in range(0, len(text.pooled), BATCH):
        rows = slice(start, start + BATCH)
        part = Text(text.context[rows], text.pooled[rows])
        noise = noise_of(seed, range(start, start + len(part.pooled)))
        pictures = decode(euler(network, noise, part, empty, g))
        values = pictures.mul(255).round().clamp(0, 255).to(torch.uint8)
        images += [Image.fromarray(value.permute(1, 2, 0).numpy()) for value in values]
    return images


@dataclass(frozen=True, eq=False)
class Judge:
    """Draws captions and reads them: ``encode`` gives contexts [n, 77, 64] and pooled outputs [n, 64]."""

    network: Any
    encode: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    decode: Decoder

    def score(self, captions: Sequence[scene.Caption], g: float, seed: int) -> float:
        """Percent of pictures that show their caption."""
        context, pooled = self.encode(["", *map(str, captions)])
        text, empty = Text(context[1:], pooled[1:]), Text(context[:1], pooled[:1])
        images = draw_captions(self.network, text, empty, g, self.decode, seed)
        return round(evaluate.accuracy(captions, images), 1)

    def kinds(self, count: int, g: float, seed: int) -> dict[str, float]:
        """:meth:`score` of one and two objects, with colours and shapes seen together in training or not."""
        kinds = {
            "one_object": ((1,), False),
            "two_objects": ((2,), False),
            "held_out_one": ((1,), True),
            "held_out_two": ((2,), True),
        }
        return {
            kind: self.score(evaluate.test_captions(seed, count, things, held_out), g, seed + 1)
            for kind, (things, held_out) in kinds.items()
        }
