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
    prompt i mod ``prompts``; or None. signals: how many g a row has.
    """

    prompts: int
    shape: Sequence[int]
    scales: tuple[float, float]
    level: Callable[[float], float]
    flow: bool
    latents: Tensor | None = None
    signals: int = 1

    def draw_prompts(self, rows: int, generator: torch.Generator) -> Tensor:
        """[rows] numbers of prompts."""
        return torch.randint(self.prompts, (rows,), generator=generator)

    def draw_scales(self, rows: int, generator: torch.Generator) -> Tensor:
        """g ~ U[low, high]: [rows] in float64, or [rows, signals] of several signals."""
        return self._scaled(torch.rand(*self._scales_shape(rows), generator=generator, dtype=torch.float64))

    def draw_spread_scales(self, rows: int, generator: torch.Generator) -> Tensor:
        """As ``draw_scales``, and of each signal one in each of ``rows`` equal parts of the range: a Latin
        hypercube (McKay et al. 1979).
        """
        shape = self._scales_shape(rows)
        inside = torch.rand(*shape, generator=generator, dtype=torch.float64)
        part = torch.rand(*shape, generator=generator).argsort(0)
        return self._scaled((part + inside) / rows)

    def _scales_shape(self, rows: int) -> tuple[int, ...]:
        return (rows,) if self.signals == 1 else (rows, self.signals)

    def _scaled(self, part: Tensor) -> Tensor:
        low, high = self.scales
        return low + (high - low) * part

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
