# SPDX-License-Identifier: GPL-3.0-or-later
"""The codec as a network that ComfyUI's Load VAE knows: core's TAESD with sixteen latent channels.

The encoder computes :func:`codec.encode` exactly. Two of its three halvings move each 2x2 of pixels into
channels, the third weighs the 48 channels of four such 4x4 blocks, and every residual block is the identity.
The decoder is that of the four-channel pipeline: its latents are linear in these but for frequencies that are
not kept, so its first convolution takes them as they are. It is trained from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import codec as means
from .. import train
from ..decoder import decoder_loss
from . import codec

LATENT_SCALE, LATENT_SHIFT = 0.3611, 0.1159
"""Core's latent format of Flux: the model's x is (z - shift) scale."""
HALF = 0.5
"""The network's latents are half the model's: its decoder begins with 3 tanh(z / 3), which is to leave them
nearly as they are."""
CONSTANT = 63
"""The encoder's channel that is one everywhere."""


def taesd() -> Any:
    """Core's class, weights not set. ComfyUI must be importable."""
    from comfy.taesd.taesd import TAESD

    return TAESD(latent_channels=codec.CHANNELS)


def _unshuffle(weight: Tensor, channels: int) -> None:
    """A convolution of stride 2 that moves 2x2 pixels of ``channels`` into 4 times as many: (c, i, j)."""
    for c in range(channels):
        for i in (0, 1):
            for j in (0, 1):
                weight[4 * c + 2 * i + j, c, 1 + i, 1 + j] = 1
    weight[CONSTANT, CONSTANT, 1, 1] = 1


def closed_form_encoder(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights (keys ``taesd_encoder.*``, shapes as in ``shapes``) that compute ``HALF * codec.encode``."""
    state = {
        key: torch.zeros_like(value) for key, value in shapes.items() if key.startswith("taesd_encoder.")
    }
    first, second, third, fourth, last = (f"taesd_encoder.{index}" for index in (0, 2, 6, 10, 14))
    for c in range(3):
        state[f"{first}.weight"][c, c, 1, 1] = 1
    state[f"{first}.bias"][CONSTANT] = 1
    _unshuffle(state[f"{second}.weight"], 3)
    _unshuffle(state[f"{third}.weight"], 12)

    analysis = codec.basis() / codec.scales()[:, None, None, None]
    # Pixel row 4 p + 2 i' + i of a block is row i of the first halving, i' of the second, p of the third.
    split = analysis.unflatten(3, (2, 2, 2)).unflatten(2, (2, 2, 2))
    taps = split.permute(0, 1, 4, 7, 3, 6, 2, 5).reshape(codec.CHANNELS, 48, 2, 2)
    lowest = analysis.clamp(max=0).sum((1, 2, 3))
    weight = state[f"{fourth}.weight"]
    weight[: codec.CHANNELS, :48, 1:, 1:] = taps
    # ReLU leaves nothing negative: each sum is raised by what it can be at least, and lowered again.
    weight[: codec.CHANNELS, CONSTANT, 1, 1] = -lowest
    for k in range(codec.CHANNELS):
        state[f"{last}.weight"][k, k, 1, 1] = HALF
    state[f"{last}.bias"][:] = HALF * (lowest - 0.5 * analysis.sum((1, 2, 3)))
    return state


def means_of_latents() -> Tensor:
    """[4, 16]: the four-channel pipeline's latents of a block, from these."""
    pictures = 0.5 + codec.basis() * codec.scales()[:, None, None, None]
    return means.encode(pictures)[:, :, 0, 0].T


def decoder_of_means(decoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights ``taesd_decoder.*`` from those of the four-channel decoder (keys ``decoder.layers.*``)."""
    renamed = {}
    for key, value in decoder.items():
        index, rest = key.removeprefix("decoder.layers.").split(".", 1)
        renamed[f"taesd_decoder.{int(index) + 1}.{rest}"] = value.float()
    first = "taesd_decoder.1.weight"
    renamed[first] = torch.einsum("omij,mk->okij", renamed[first], means_of_latents()) / HALF
    return renamed


def initial(decoder: dict[str, Tensor]) -> Any:
    """TAESD with the closed-form encoder and the four-channel pipeline's decoder."""
    network = taesd()
    state = closed_form_encoder(network.state_dict()) | decoder_of_means(decoder)
    scales = {"vae_scale": torch.tensor(HALF * LATENT_SCALE), "vae_shift": torch.tensor(LATENT_SHIFT)}
    network.load_state_dict(state | scales)
    return network


class LatentsToPictures(nn.Module):
    """TAESD's decoder on the model's latents; what the four-channel decoder left at zero stays zero."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        for parameter in decoder.parameters():
            parameter.requires_grad_(bool(parameter.any()))

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(HALF * z)


def train_decoder(network: Any, folder: Path, schedule: train.Schedule, seed: int) -> None:
    """Go on training the decoder of ``network`` as the four-channel one was; it becomes the average."""
    outer = ("decoder.1.", "decoder.19.")
    run = train.Run(LatentsToPictures(network.taesd_decoder), folder, schedule, outer)
    run.train(lambda generator: decoder_loss(run.model, schedule.batch, generator, codec.encode), seed)
    network.taesd_decoder = cast(LatentsToPictures, run.average).decoder
