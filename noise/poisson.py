# SPDX-License-Identifier: GPL-3.0-or-later
"""The noise of Poisson flow models: PFGM++ (arXiv 2302.04265), sections 3 and 4.

A state is x = y + R u at r = sigma sqrt(D): u on the unit sphere of N dimensions, and of R the density
p_r(R) ~ R^(N - 1) / (R^2 + r^2)^((N + D) / 2), which is R = r sqrt(B / (1 - B)) with B ~ Beta(N / 2, D / 2).
That is x = y + sigma z sqrt(D / chi^2_D) with z Gaussian: Student's t of D degrees of freedom. Its length
varies by about 1 / sqrt(2 D) of it from picture to picture; D to infinity is the Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.dry_run import NoiseSampler

Draw = Callable[[dict[str, Any], int], Any]
"""(LATENT, seed) -> what core draws for it: a tensor, or a nested one of several parts."""
CHUNK = 1 << 16
"""Normal numbers that are squared at a time."""
AT_START, AT_STEPS = 0x5F1C0DE5, 0x9A2B3C4D
"""What a seed is mixed with for the lengths: its own numbers are the noise itself."""


def chi_square(D: int, generator: torch.Generator) -> float:
    """chi^2_D: the sum of the squares of D normal numbers, drawn on the CPU."""
    sizes = [*[CHUNK] * (D // CHUNK), D % CHUNK]
    return sum(float(torch.randn(size, generator=generator).double().square().sum()) for size in sizes)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths(D: int, rows: int, generator: torch.Generator) -> list[float]:
    """sqrt(D / chi^2_D) of every row: by how much Poisson noise is longer than Gaussian noise."""
    return [math.sqrt(D / chi_square(D, generator)) for _ in range(rows)]


def stretched(z: Tensor, by: list[float]) -> Tensor:
    """Every row of z [B, ...] times its own number."""
    return z * z.new_tensor(by).reshape(-1, *[1] * (z.ndim - 1))


@dataclass(frozen=True)
class PoissonNoise:
    """A NOISE: core's of ``seed``, its rows stretched as the law of PFGM++ has it, all parts of a row alike.
    D: 1 or more.
    """

    seed: int
    D: int
    draw: Draw

    def generate_noise(self, input_latent: dict[str, Any]) -> Any:
        """Noise for LATENT's ``samples`` [B, ...], as NOISEs of core give it."""
        noise = self.draw(input_latent, self.seed)
        parts = noise.unbind() if noise.is_nested else [noise]
        by = lengths(self.D, len(parts[0]), generator_of(self.seed ^ AT_START))
        if not noise.is_nested:
            return stretched(noise, by)
        return type(noise)([stretched(part, by) for part in parts])


@dataclass(frozen=True)
class PoissonSteps:
    """A sampler function whose own noises have the law too, with D: for stochastic samplers.

    gaussian(x, seed): k-diffusion's noise sampler. What ``function`` draws in another way, as along Brownian
    paths, is drawn anew at every step here.
    """

    function: Callable[..., Tensor]
    D: int
    gaussian: Callable[..., NoiseSampler]

    def make_noise_sampler(self, x: Tensor, seed: int | None) -> NoiseSampler:
        """Of a run from x [B, ...]. The ``seed`` is also of the lengths."""
        draw, generator = self.gaussian(x, seed=seed), generator_of((seed or 0) ^ AT_STEPS)

        def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            return stretched(draw(sigma, sigma_next), lengths(self.D, len(x), generator))

        return noise

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Any = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
        **options: Any,
    ) -> Tensor:
        """The function's own run, by a k-diffusion sampler's arguments."""
        noise = noise_sampler or self.make_noise_sampler(x, (extra_args or {}).get("seed"))
        return self.function(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise, **options)
