# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompt accuracy of teacher and student, sampled by DDIM and judged by the reader."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor, nn

from ..students.guidance import guidance_embedding
from . import networks, reader, scene
from .train import Diffusion

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""v(z [B, 4, 12, 12], t [B], context [B, 77, d])."""
BATCH = 125


def teacher_velocity(unet: nn.Module, empty: Tensor, g: float) -> Velocity:
    """Classifier-free guidance: v = v_empty + g (v_context - v_empty); one pass where g = 1."""

    def velocity(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if g == 1:
            return unet(z, t, context, return_dict=False)[0]
        both = torch.cat([context, empty.expand_as(context)])
        conditional, unconditional = unet(torch.cat([z, z]), torch.cat([t, t]), both, return_dict=False)[
            0
        ].chunk(2)
        return torch.lerp(unconditional, conditional, g)

    return velocity


def student_velocity(unet: nn.Module, g: float) -> Velocity:
    """One pass with g embedded."""

    def velocity(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        milliweights = networks.GUIDANCE.milliweights(torch.full((len(z),), g))
        return unet(
            z,
            t,
            context,
            timestep_cond=guidance_embedding(milliweights, networks.GUIDANCE),
            return_dict=False,
        )[0]

    return velocity


def ddim(velocity: Velocity, noise: Tensor, context: Tensor, diffusion: Diffusion, steps: int) -> Tensor:
    """Deterministic DDIM (Song et al. 2021) for v-prediction on trailing timesteps; the last step returns the
    predicted x.
    """
    times = torch.linspace(len(diffusion.alpha) - 1, -1, steps + 1).round().long()
    z = noise
    for t, s in pairwise(times):
        v = velocity(z, t.expand(len(z)), context)
        x, eps = (
            diffusion.alpha[t] * z - diffusion.sigma[t] * v,
            diffusion.sigma[t] * z + diffusion.alpha[t] * v,
        )
        z = x if s < 0 else diffusion.alpha[s] * x + diffusion.sigma[s] * eps
    return z


def pictures(decoder: nn.Module, latents: Tensor) -> list[Image.Image]:
    """Decoded latents as Pillow pictures; ``decoder`` is an AutoencoderTiny's, with outputs in [-1, 1]."""
    values = decoder(latents).mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(value.permute(1, 2, 0).numpy()) for value in values]


@torch.inference_mode()
def draw_captions(
    velocity: Velocity, contexts: Tensor, decoder: nn.Module, diffusion: Diffusion, steps: int, seed: int
) -> list[Image.Image]:
    """One picture a context; row i starts from the noise of (seed, i) whatever the batch size."""
    images: list[Image.Image] = []
    for start in range(0, len(contexts), BATCH):
        rows = contexts[start : start + BATCH]
        noise = torch.stack(
            [
                torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(seed * 1_000_003 + start + i))
                for i in range(len(rows))
            ]
        )
        images += pictures(decoder, ddim(velocity, noise, rows, diffusion, steps))
    return images


def test_captions(
    seed: int, count: int, things: Sequence[int], held_out: bool = False
) -> list[scene.Caption]:
    """``count`` captions, alternating over the numbers of ``things``."""
    rng = random.Random(seed)
    return [scene.random_caption(rng, things[i % len(things)], held_out) for i in range(count)]


def accuracy(captions: Sequence[scene.Caption], images: Sequence[Image.Image]) -> float:
    """Share of pictures that satisfy their captions, percent."""
    return 100 * reader.accuracy(captions, images)
