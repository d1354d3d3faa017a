# SPDX-License-Identifier: GPL-3.0-or-later
"""Trains the decoder of the embedded pipeline on crops around the shapes' edges."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from . import codec, data, scene, train

WINDOW = 6
"""Side of a training crop, latent pixels."""
EDGE_WEIGHT, EDGE_WIDTH, EDGE_CONTRAST = 10.0, 7, 0.1
"""What a pixel whose EDGE_WIDTH x EDGE_WIDTH neighbourhood has more contrast counts beyond others: corners
are few pixels, and a shape without its corners is another shape."""
NOISE = 0.04
"""Standard deviation of noise added to the latents, so that the decoder forgives what a sampler leaves."""


def crops(
    batch: int, generator: torch.Generator, encode: data.Encode = codec.encode
) -> tuple[Tensor, Tensor]:
    """Latents [batch, channels, WINDOW, WINDOW] and pictures [batch, 3, 8 WINDOW, 8 WINDOW] around a shape of
    random drawings.
    """
    rng = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
    latents, pictures = [], []
    blocks = scene.SIDE // codec.BLOCK
    for _ in range(batch):
        caption = scene.random_caption(rng, rng.choice((1, 2)))
        placed = scene.lay_out(caption, rng)
        picture = data.picture_tensor(scene.paint(placed, caption.background))
        target = rng.choice(placed)
        left, top = (
            min(max(round(centre / codec.BLOCK) - rng.randint(1, WINDOW - 1), 0), blocks - WINDOW)
            for centre in (target.x, target.y)
        )
        rows, columns = slice(top, top + WINDOW), slice(left, left + WINDOW)
        latents.append(encode(picture[None])[0, :, rows, columns])
        pictures.append(
            picture.unflatten(1, (blocks, 8))
            .unflatten(3, (blocks, 8))[:, rows, :, columns]
            .flatten(3, 4)
            .flatten(1, 2)
        )
    return torch.stack(latents), torch.stack(pictures)


class Decoder(nn.Module):
    """An AutoencoderTiny's decoder alone, latents to pictures in [0, 1]; frozen where it stays the
    identity.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder.requires_grad_(False)
        for parameter in codec.start_decoder(self.decoder):
            parameter.requires_grad_(True)

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z).mul(0.5).add(0.5)


def edge_weighted_l1(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute error, edges weighted."""
    highest, lowest = (
        sign * nn.functional.max_pool2d(sign * pictures, EDGE_WIDTH, 1, EDGE_WIDTH // 2) for sign in (1, -1)
    )
    weights = 1 + EDGE_WEIGHT * ((highest - lowest).amax(1, keepdim=True) > EDGE_CONTRAST)
    return (weights * (drawn - pictures).abs()).mean() / weights.mean()


def decoder_loss(
    model: nn.Module, batch: int, generator: torch.Generator, encode: data.Encode = codec.encode
) -> Tensor:
    """Of ``model``, latents to pictures, on random crops with noise on their latents."""
    z, pictures = crops(batch, generator, encode)
    return edge_weighted_l1(model(z + NOISE * torch.randn(z.shape, generator=generator)), pictures)


def train_decoder(decoder: nn.Module, folder: Path, schedule: train.Schedule, seed: int) -> nn.Module:
    """Mean absolute error on crops around edges; returns the averaged decoder."""
    run = train.Run(Decoder(decoder), folder, schedule)
    run.train(lambda generator: decoder_loss(run.model, schedule.batch, generator), seed)
    return cast(Decoder, run.average).decoder
