# SPDX-License-Identifier: GPL-3.0-or-later
"""Narrow networks with a second time, made and saved by diffusers, and what their authors' code predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from diffusers import AnyFlowTransformer3DModel, QwenImageTransformer2DModel, ZImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenTimestepProjEmbeddings
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, t [B], r [B], context) -> u(x, t, r)."""
Z_IMAGE = {"n_heads": 3, "n_kv_heads": 3, "axes_dims": [32, 48, 48], "axes_lens": [128, 128, 128]}
QWEN = {"num_attention_heads": 1, "joint_attention_dim": 64}
OF_WIDTH = {
    "lumina2": {
        **Z_IMAGE,
        "rope_theta": 256.0,
        "ffn_dim_multiplier": 8 / 3,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    },
    "qwen_image": QWEN,
}
"""What core knows of Z-Image and Qwen-Image by their width alone."""


@dataclass(frozen=True)
class Reference:
    """A network of diffusers. shape: of one latent; text: width of the prompt; zero: whether r is always
    0.
    """

    network: Any
    velocity: Velocity
    shape: tuple[int, ...]
    text: int
    zero: bool = False

    def save(self, folder: Path) -> Path:
        self.network.save_pretrained(folder)
        return folder

    def context(self) -> Tensor:
        return torch.randn(1, 32, self.text, generator=torch.Generator().manual_seed(3))


def randomised(network: Any) -> Any:
    """Every tensor matters, none dominates."""
    generator = torch.Generator().manual_seed(0)
    for key, parameter in sorted(network.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and "scale_shift" not in key:
            drawn = drawn / parameter[0].numel() ** 0.5
        elif "norm" in key and key.endswith("weight"):
            drawn = 1 + 0.1 * drawn
        else:
            drawn = 0.1 * drawn
        parameter.data = drawn
    return network.eval().requires_grad_(False)


def anyflow(deltatime_type: str = "r", gate_value: float = 0.25) -> Reference:
    network = randomised(
        AnyFlowTransformer3DModel(
            num_attention_heads=1,
            ffn_dim=64,
            num_layers=2,
            deltatime_type=deltatime_type,
            gate_value=gate_value,
        )
    )

    def velocity(x: Tensor, t: Tensor, r: Tensor, context: Tensor) -> Tensor:
        frames = x.movedim(1, 2)
        times, ends = (1000 * each[:, None].expand(-1, frames.shape[1]) for each in (t, r))
        text = context.expand(len(x), -1, -1)
        return network(frames, times, ends, text, return_dict=False)[0].movedim(2, 1)

    return Reference(network, velocity, (16, 2, 4, 4), 4096)


def twinflow_z_image() -> Reference:
    """The authors' wrapper: t_embedder_2 beside t_embedder, times turned with their sign."""
    network = ZImageTransformer2DModel(**Z_IMAGE, dim=384, n_layers=1, n_refiner_layers=2, cap_feat_dim=64)
    network.t_embedder = TimestepEmbedder(256, mid_size=384)  # core's is no wider than the network
    network.t_embedder_2 = TimestepEmbedder(256, mid_size=384)
    randomised(network)

    def velocity(x: Tensor, t: Tensor, r: Tensor, context: Tensor) -> Tensor:
        turned, target = t.sign() * (1 - t.abs()), r.sign() * (1 - r.abs())

        def both(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            second = network.t_embedder_2(target * 1000 - turned * 1000)
            return output + second * (turned - target).abs().unsqueeze(1)

        handle = network.t_embedder.register_forward_hook(both)
        answers = network(list(x.unsqueeze(2)), turned, [context[0]] * len(x), return_dict=False)[0]
        handle.remove()
        return -torch.stack(list(answers)).squeeze(2)

    return Reference(network, velocity, (16, 16, 8), 64, zero=True)


def twinflow_qwen() -> Reference:
    """The authors' wrapper: time_text_embed_2 beside time_text_embed."""
    network = QwenImageTransformer2DModel(**QWEN, num_layers=1)
    network.time_text_embed_2 = QwenTimestepProjEmbeddings(embedding_dim=128)
    randomised(network)

    def velocity(x: Tensor, t: Tensor, r: Tensor, context: Tensor) -> Tensor:
        def both(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            return output + network.time_text_embed_2(r, output) * (t - r).unsqueeze(1)

        handle = network.time_text_embed.register_forward_hook(both)
        rows, channels, _, height, width = x.shape
        folded = x.reshape(rows, channels, height // 2, 2, width // 2, 2)
        packed = folded.permute(0, 2, 4, 1, 3, 5).reshape(rows, height * width // 4, channels * 4)
        answer = network(
            packed,
            context.expand(rows, -1, -1),
            torch.ones(rows, context.shape[1], dtype=torch.bool),
            t,
            [[(1, height // 2, width // 2)]] * rows,
            return_dict=False,
        )[0]
        handle.remove()
        unfolded = answer.reshape(rows, height // 2, width // 2, channels, 2, 2)
        return unfolded.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    return Reference(network, velocity, (16, 1, 8, 8), 64, zero=True)


def latents(shape: tuple[int, ...], rows: int) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(5))


def velocities(model: Any, x: Tensor, t: Tensor, schedule: Tensor, positive: list) -> Tensor:
    """u of a MODEL at rows of several noise levels, as a sampler over ``schedule`` asks for it."""
    found: list[Tensor] = []

    def ask(asked: Any, noise: Tensor, _sigmas: Tensor, extra_args: Any = None, **_: Any) -> Tensor:
        of_row = t.reshape(-1, *[1] * (x.ndim - 1))
        found.append((x - asked(x, t, **(extra_args or {}))) / of_row)
        return noise

    drawn(model, comfy.samplers.KSAMPLER(ask), schedule, positive, torch.zeros_like(x))
    return found[0]


def drawn(model: Any, sampler: Any, schedule: Tensor, positive: list, noise: Tensor) -> Tensor:
    """What a sampler makes of the noise, at CFG 1."""
    return comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        sampler,
        schedule,
        positive,
        positive,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=11,
    )
