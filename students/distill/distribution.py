# SPDX-License-Identifier: GPL-3.0-or-later
"""What training examples are drawn from: prompts, guidance scales, noise levels and states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.alpha import alpha_flow, alpha_ve
from ...common.steps import per_row


@dataclass(frozen=True)
class TrainingDistribution:
    """c, g, sigma and x of the examples of all stages. All draws are made on the CPU, from a generator.

    prompts: how many there are. shape: of one latent. scales: lowest and highest g. level: sigma at a time in
    [0, 1], 1 being pure noise. latents: [n, ...] of the user's pictures in the model's own scale, row i to
    prompt i mod ``prompts``; or None.
    """

    prompts: int
    shape: Sequence[int]
    scales: tuple[float, float]
    level: Callable[[float], float]
    flow: bool
    latents: Tensor | None = None

    def draw_prompts(self, rows: int, generator: torch.Generator) -> Tensor:
        """[rows] numbers of prompts."""
        return torch.randint(self.prompts, (rows,), generator=generator)

    def draw_scales(self, rows: int, generator: torch.Generator) -> Tensor:
        """g ~ U[low, high]: [rows] in float64."""
        low, high = self.scales
        return low + (high - low) * torch.rand(rows, generator=generator, dtype=torch.float64)

    def draw_noise(self, rows: int, generator: torch.Generator, sigma: float) -> Tensor:
        """sigma eps: [rows, ...]."""
        return sigma * torch.randn(rows, *self.shape, generator=generator)

    def draw_noised_latents(
        self, rows: int, generator: torch.Generator, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """alpha x0 + sigma eps of random pictures, and their prompts. sigma: [rows]. Needs ``latents``."""
        assert self.latents is not None
        picture = torch.randint(len(self.latents), (rows,), generator=generator)
        x0, eps = self.latents[picture], torch.randn(rows, *self.shape, generator=generator)
        alpha = alpha_flow(sigma) if self.flow else alpha_ve(sigma)
        return per_row(alpha, x0) * x0 + per_row(sigma, x0) * eps, picture % self.prompts
