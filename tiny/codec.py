# SPDX-License-Identifier: GPL-3.0-or-later
"""The latents of the embedded pipeline: an encoder in closed form and a learned decoder, in the shape of
TAESD.

For every 8x8 block of a picture in [0, 1], with u, v in (-1, 1) the position inside the block,

    z_c = (mean(RGB_c) - 1/2) / s        c = 0, 1, 2
    z_3 = mean((u + v) * Y) / s_3        Y = R/2 + G/4 + B/4

so three channels are the picture at an eighth of its size and the fourth says on which side of a block an
edge runs. :func:`encode` computes them directly; :func:`closed_form_encoder` writes the same map into the
weights of an ``AutoencoderTiny`` (each stride-2 convolution averages 2x2 and every residual block is the
identity), so that ComfyUI and diffusers encode pictures to exactly these latents. Only the decoder is
trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCK = 8
TRAINED_BLOCKS = (2, 2, 1, 1)
"""Residual blocks of the decoder that learn, from the lowest resolution to the highest; the rest stay the
identity.
"""
SCALE, SCALE_GRADIENT = 0.375, 0.03125
LUMA = (0.5, 0.25, 0.25)
RGB_FACTORS = [[2 * SCALE if row == column else 0.0 for column in range(3)] for row in range(4)]
"""Latent-to-RGB map in [-1, 1] for previews: exact, as the first three channels are the block means."""


def encode(pictures: Tensor) -> Tensor:
    """Latents [B, 4, H/8, W/8] of pictures [B, 3, H, W] in [0, 1]."""
    blocks = pictures.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)
    position = (2 * torch.arange(BLOCK, dtype=pictures.dtype, device=pictures.device) + 1) / BLOCK - 1
    luma = torch.einsum("bchwij,c->bhwij", blocks, blocks.new_tensor(LUMA))
    gradient = (luma * (position[:, None] + position[None, :])).mean((-2, -1))
    colour = (blocks.mean((-2, -1)) - 0.5) / SCALE
    return torch.cat([colour, gradient[:, None] / SCALE_GRADIENT], dim=1)


def closed_form_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights (keys ``encoder.*`` of an AutoencoderTiny state dict) that compute :func:`encode`
    exactly.

    Channels 0-2 carry the colours, 3 the gradient plus one (ReLU leaves nothing negative), 4 the constant
    one. One stride-2 stage maps the gradient of a half-size block, g', to g = mean(g'/2 + (±1/2 ±1/2) Y) over
    its four blocks.
    """
    encoder = {key: torch.zeros_like(value) for key, value in state.items() if key.startswith("encoder.")}
    convolutions = sorted(
        {int(key.split(".")[2]) for key in encoder if key.split(".")[3] in ("weight", "bias")}
    )
    first, *halvings, last = convolutions
    weight, bias = encoder[f"encoder.layers.{first}.weight"], encoder[f"encoder.layers.{first}.bias"]
    for channel in range(3):
        weight[channel, channel, 1, 1] = 1
    bias[3] = bias[4] = 1
    for index in halvings:
        weight = encoder[f"encoder.layers.{index}.weight"]
        for channel in (0, 1, 2, 4):
            weight[channel, channel, 1:, 1:] = 0.25
        weight[3, 3, 1:, 1:] = 0.125
        weight[3, 4, 1:, 1:] = 0.125
        for channel, share in enumerate(LUMA):
            weight[3, channel, 1, 1], weight[3, channel, 2, 2] = -0.25 * share, 0.25 * share
    weight, bias = encoder[f"encoder.layers.{last}.weight"], encoder[f"encoder.layers.{last}.bias"]
    for channel in range(3):
        weight[channel, channel, 1, 1], bias[channel] = 1 / SCALE, -0.5 / SCALE
    weight[3, 3, 1, 1], bias[3] = 1 / SCALE_GRADIENT, -1 / SCALE_GRADIENT
    return encoder


def start_decoder(decoder: nn.Module) -> list[nn.Parameter]:
    """Set an AutoencoderTiny's decoder to repeat each block's mean colour 8x8 times; returns the parameters
    to train from there.
    """
    trained: list[nn.Parameter] = []
    level = since_upsampling = 0
    with torch.no_grad():
        for layer in decoder.layers:
            if isinstance(layer, nn.Upsample):
                level, since_upsampling = level + 1, 0
            elif isinstance(layer, nn.Conv2d) and layer.in_channels == layer.out_channels:
                nn.init.dirac_(layer.weight)
                trained += layer.parameters()
            elif isinstance(layer, nn.Conv2d):
                trained += layer.parameters()
            elif hasattr(layer, "conv"):
                convolutions = [part for part in layer.conv if isinstance(part, nn.Conv2d)]
                since_upsampling += 1
                if since_upsampling <= TRAINED_BLOCKS[level]:
                    trained += layer.conv.parameters()
                    convolutions = convolutions[-1:]
                for part in convolutions:
                    part.weight.zero_()
                    part.bias.zero_()
        first, last = decoder.layers[0], decoder.layers[-1]
        last.weight.zero_()
        last.bias.zero_()
        for channel in range(3):
            first.weight[channel].zero_()
            first.weight[channel, channel, 1, 1], first.bias[channel] = SCALE, 0.5
            last.weight[channel, channel, 1, 1] = 1
    return trained
