# SPDX-License-Identifier: GPL-3.0-or-later
"""Samplers with k-diffusion's interface, written from their papers, and an exact model to sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dizzydiff.common.dry_run import NoiseSampler, SamplerRun
from dizzydiff.common.sampler_trace import trace
from dizzydiff.drafting.noise import NoiseTape
from dizzydiff.drafting.speculation import Arrival, SpeculativeModel, StandIn, State
from dizzydiff.drafting.window import Drafting

Model = Callable[..., Tensor]


class Mixture:
    """D(x, sigma) = E[x0 | x] of isotropic Gaussians around random centres, in float64; counts the states it
    sees.
    """

    def __init__(self, dimension: int = 16, centres: int = 4, width: float = 0.3, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.mu = torch.randn(centres, dimension, generator=generator, dtype=torch.float64)
        self.variance, self.calls = width**2, 0

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        self.calls += 1
        total = self.variance + sigma[:, None, None] ** 2
        difference = x[:, None] - self.mu
        weights = (-difference.square().sum(-1, keepdim=True) / (2 * total)).softmax(1)
        return (weights * (self.mu + self.variance / total * difference)).sum(1)


class Here:
    """Evaluates every state of a round with one model, and keeps the largest number of latents a run held
    meanwhile.
    """

    def __init__(self, model: Model, capacity: int = 64, drafting: bool = True) -> None:
        self.model, self.capacity, self.drafting = model, capacity, drafting
        self.evaluated_on: list[str] = []

    def prepare(self, arguments: dict[str, Any]) -> tuple[int, ...]:
        return ()

    def begin(self, drafts: Mapping[int, State], arguments: dict[str, Any]) -> None:
        assert not drafts

    def due(self) -> Mapping[int, State]:
        return {}

    def arrived(self) -> Mapping[int, Arrival]:
        return {}

    def __call__(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        return [self.model(state.x, state.sigmas)[None] for state in states]


def euler(model: Model, x: Tensor, sigmas: Tensor, callback: Any, noise: NoiseSampler) -> Tensor:
    for i in range(len(sigmas) - 1):
        D = model(x, sigmas[i].expand(x.shape[0]))
        if callback:
            callback({"i": i, "x": x, "denoised": D})
        x = x + (x - D) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def heun(model: Model, x: Tensor, sigmas: Tensor, callback: Any, noise: NoiseSampler) -> Tensor:
    for i in range(len(sigmas) - 1):
        D, dt = model(x, sigmas[i].expand(x.shape[0])), sigmas[i + 1] - sigmas[i]
        if callback:
            callback({"i": i, "x": x, "denoised": D})
        d = (x - D) / sigmas[i]
        if sigmas[i + 1] > 0:
            ahead = x + d * dt
            d = (d + (ahead - model(ahead, sigmas[i + 1].expand(x.shape[0]))) / sigmas[i + 1]) / 2
        x = x + d * dt
    return x


def dpmpp_2m(model: Model, x: Tensor, sigmas: Tensor, callback: Any, noise: NoiseSampler) -> Tensor:
    old = None
    for i in range(len(sigmas) - 1):
        D = model(x, sigmas[i].expand(x.shape[0]))
        if callback:
            callback({"i": i, "x": x, "denoised": D})
        ratio, mixed = sigmas[i + 1] / sigmas[i], D
        if old is not None and sigmas[i + 1] > 0:
            r = (sigmas[i - 1] / sigmas[i]).log() / (sigmas[i] / sigmas[i + 1]).log()
            mixed = (1 + 1 / (2 * r)) * D - old / (2 * r)
        x, old = ratio * x + (1 - ratio) * mixed, D
    return x


def ancestral(model: Model, x: Tensor, sigmas: Tensor, callback: Any, noise: NoiseSampler) -> Tensor:
    for i in range(len(sigmas) - 1):
        D, s, t = model(x, sigmas[i].expand(x.shape[0])), sigmas[i], sigmas[i + 1]
        if callback:
            callback({"i": i, "x": x, "denoised": D})
        up = (t**2 * (s**2 - t**2) / s**2).sqrt()
        down = (t**2 - up**2).clamp(min=0).sqrt()
        x = D + down / s * (x - D)
        if t > 0:
            x = x + up * noise(s, t)
    return x


def adaptive(model: Model, x: Tensor, sigmas: Tensor, callback: Any, noise: NoiseSampler) -> Tensor:
    """Calls the model in between where its prediction is large."""
    for i in range(len(sigmas) - 1):
        D = model(x, sigmas[i].expand(x.shape[0]))
        if callback:
            callback({"i": i, "x": x, "denoised": D})
        if D.abs().mean() > 0.2:
            model(x, (sigmas[i] * 0.9).expand(x.shape[0]))
    return x


SAMPLERS: dict[str, SamplerRun] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "ancestral": ancestral}


def karras(steps: int, top: float = 10.0, bottom: float = 0.03) -> Tensor:
    """rho = 7; a last zero."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat(
        [
            (top ** (1 / 7) + ramp * (bottom ** (1 / 7) - top ** (1 / 7))) ** 7,
            torch.zeros(1, dtype=torch.float64),
        ]
    )


def seeded_noise(x: Tensor, seed: int = 5) -> NoiseSampler:
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def start(sigmas: Tensor, rows: int = 2, dimension: int = 16, seed: int = 1) -> Tensor:
    return sigmas[0] * torch.randn(
        rows, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def plainly(sampler: SamplerRun, model: Model, sigmas: Tensor, x: Tensor) -> Tensor:
    return sampler(model, x, sigmas, None, seeded_noise(x))


def drafted(
    sampler: SamplerRun,
    model: Model,
    sigmas: Tensor,
    x: Tensor,
    how: Drafting,
    kind: type[SpeculativeModel] = SpeculativeModel,
    **here: Any,
) -> tuple[Tensor, SpeculativeModel]:
    found = trace(
        sampler, lambda predict: StandIn(model, lambda x, sigma, **_: predict(x, sigma)[0]), sigmas, x.ndim
    )
    noises = NoiseTape(seeded_noise(x), found.noise_sigmas, sigmas)
    speculative = kind(
        model,
        found,
        evaluate=Here(model, **here),
        deliver=lambda p, x, s, a: p[0],
        noises=noises,
        drafting=how,
        shape=x.shape,
    )
    return sampler(speculative, x, sigmas, None, noises.reader()), speculative


def deviation(result: Tensor, reference: Tensor) -> float:
    """RMS distance over RMS, the median over rows."""
    off, scale = ((t.square().mean(-1)).sqrt() for t in (result - reference, reference))
    return float((off / scale).median())
