# SPDX-License-Identifier: GPL-3.0-or-later
"""Gaussian mixtures under a diffusion, in closed form: models that are exact.

x0 ~ sum_k pi_k N(mu_k, sigma0^2 I) and x_t = a(t) x0 + b(t) n, so that x_t is a mixture too, of N(m_k, s^2 I)
with m_k = a mu_k and s^2 = a^2 sigma0^2 + b^2. Bound and grid: arXiv 2606.03820.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..stability.equidistribution import cumulative, equidistribute

BOUND_POINTS = 20_001
"""Of the trapezoid rule, for integrals of the bound."""


@dataclass(frozen=True)
class Process:
    """a(t), da/dt, b^2(t) and (1/2) d(b^2)/dt, each of a tensor of times."""

    a: Callable[[Tensor], Tensor]
    a_rate: Callable[[Tensor], Tensor]
    b2: Callable[[Tensor], Tensor]
    half_b2_rate: Callable[[Tensor], Tensor]


def ornstein_uhlenbeck(beta: float = 5.0) -> Process:
    """dX = -beta X dt + sqrt(2 beta) dW, t in [0, 1]: a = exp(-beta t), b^2 = 1 - a^2."""

    def a(t: Tensor) -> Tensor:
        return torch.exp(-beta * t)

    return Process(
        a, lambda t: -beta * a(t), lambda t: -torch.expm1(-2 * beta * t), lambda t: beta * a(t) ** 2
    )


def variance_exploding() -> Process:
    """t = sigma, as k-diffusion has it: a = 1, b = sigma."""
    return Process(torch.ones_like, torch.zeros_like, torch.square, lambda t: t)


def flow() -> Process:
    """t = sigma in [0, 1], rectified flow: a = 1 - sigma, b = sigma."""
    return Process(lambda t: 1 - t, lambda t: -torch.ones_like(t), torch.square, lambda t: t)


@dataclass(frozen=True)
class IsotropicMixture:
    """Of modes of one width in every direction, with the stability bound of its probability flow."""

    weights: Tensor
    """pi [K], summing to 1."""
    means: Tensor
    """mu [K, d]."""
    std: float
    """sigma0 >= 0."""
    process: Process

    @property
    def diameter(self) -> float:
        """D0 = max ||mu_i - mu_j||."""
        return float(torch.cdist(self.means, self.means).max())

    def variance(self, t: Tensor) -> Tensor:
        """s^2 = a^2 sigma0^2 + b^2."""
        return self.process.a(t) ** 2 * self.std**2 + self.process.b2(t)

    def growth(self, t: Tensor) -> Tensor:
        """s'/s, the rate at which one mode widens."""
        return (
            self.process.a(t) * self.process.a_rate(t) * self.std**2 + self.process.half_b2_rate(t)
        ) / self.variance(t)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of x0: [n, d]."""
        modes = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[modes] + self.std * noise

    def responsibilities(self, x: Tensor, t: Tensor) -> Tensor:
        """gamma_k(x) = p(mode k | x_t = x): [B, K] for x [B, d] and times t, [] or [B, 1].

        ||x - m_k||^2 / 2 without ||x||^2 / 2, which all modes share.
        """
        a = self.process.a(t)
        distances = a * (x @ self.means.T) - a**2 * self.means.square().sum(1) / 2
        return (self.weights.log() + distances / self.variance(t)).softmax(-1)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t = -(x - m_bar) / s^2, m_bar = sum gamma_k m_k."""
        return (self.process.a(t) * (self.responsibilities(x, t) @ self.means) - x) / self.variance(t)

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """D = E[x0 | x_t = x] = mu_bar + (a sigma0^2 / s^2)(x - a mu_bar)."""
        mean, a = self.responsibilities(x, t) @ self.means, self.process.a(t)
        return mean + a * self.std**2 / self.variance(t) * (x - a * mean)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v = a' mu_bar + (s'/s)(x - a mu_bar), the probability flow: -beta (x + score) for OU, (x - D) /
        sigma for VE and flow.

        This form has no pole at either end of any of the processes.
        """
        mean = self.responsibilities(x, t) @ self.means
        return self.process.a_rate(t) * mean + self.growth(t) * (x - self.process.a(t) * mean)

    def jacobian(self, x: Tensor, t: Tensor) -> Tensor:
        """J = (s'/s) I + a (a' - a s'/s) Cov_gamma(mu) / s^2: [B, d, d]. For OU: -beta [(1 - 1/s^2) I +
        Cov_gamma(m) / s^4].
        """
        gamma, a, rate = self.responsibilities(x, t), self.process.a(t), self.growth(t)
        centred = self.means - (gamma @ self.means)[:, None]
        covariance = torch.einsum("bk,bki,bkj->bij", gamma, centred, centred)
        identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return rate * identity + a * (self.process.a_rate(t) - a * rate) / self.variance(t) * covariance

    def bound(self, t: Tensor, sharp: bool = False) -> Tensor:
        """L(t) >= ||J||, from Cov_gamma(mu) <= D0^2 / 4, at times t [M].

        The paper's triangle form, for OU: L = beta (|1 - 1/s^2| + diam^2 / (4 s^4)), diam = a D0. sharp: the
        larger end of the interval that holds J's eigenvalues, which is never above it.
        """
        a, rate = self.process.a(t), self.growth(t)
        spread = a * (self.process.a_rate(t) - a * rate) / self.variance(t) * self.diameter**2 / 4
        return torch.maximum(rate.abs(), (rate + spread).abs()) if sharp else rate.abs() + spread.abs()

    def cumulative_bound(self, start: float, end: float) -> float:
        """A, the integral of L: the flow map between the two times has a Lipschitz constant of at most
        exp A.
        """
        t = torch.linspace(start, end, BOUND_POINTS, dtype=torch.float64)
        return float(cumulative(t, self.bound(t))[-1])

    def stability_grid(self, n: int, start: float = 0.0, end: float = 1.0) -> Tensor:
        """n segments of equal A between two times, [n + 1]: they minimise the largest Lipschitz bound of a
        segment.
        """
        t = torch.linspace(start, end, BOUND_POINTS, dtype=torch.float64)
        return equidistribute(t, self.bound(t), n)


class Dressed:
    """What ComfyUI's sampler functions take for a model: its noise levels, and the shape [C, H, W] of a
    latent.
    """

    def __init__(self, sampling: Any, shape: tuple[int, int, int]) -> None:
        patcher = SimpleNamespace(get_model_object=lambda name: sampling, model=self)
        self.shape = shape
        self.inner_model = SimpleNamespace(
            model_patcher=patcher, inner_model=SimpleNamespace(model_sampling=sampling)
        )

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        """D at states x [B, C, H, W] and noise levels sigma [B]."""
        raise NotImplementedError


class GuidedMixture(Dressed):
    """D = D_u + cfg (D_c - D_u) of pictures [4, 16, 16]: 256 modes of width 0.1 on two scales, 16 fine ones
    about each of 16 coarse ones, all with the 1/f spectrum of pictures. Every fourth coarse one is the
    condition's.
    """

    def __init__(self, seed: int, cfg: float, process: Process, sampling: Any) -> None:
        super().__init__(sampling, (4, 16, 16))
        generator = torch.Generator().manual_seed(seed)
        coarse, fine = (one_over_f((16, n, *self.shape), generator) for n in (1, 16))
        means, self.cfg = (coarse + 0.4 * fine).flatten(2), cfg
        means = means / means.std()
        self.uncond, self.cond = (
            IsotropicMixture(torch.full([len(mu)], 1 / len(mu)), mu, 0.1, process)
            for mu in (means.flatten(0, 1), means[::4].flatten(0, 1))
        )

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        t = sigma[:, None]
        cond = self.cond.denoised(x.flatten(1), t)
        if self.cfg == 1:
            return cond.view_as(x)
        uncond = self.uncond.denoised(x.flatten(1), t)
        return (uncond + self.cfg * (cond - uncond)).view_as(x)


def one_over_f(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Fields of white noise whose amplitudes fall as 1 / frequency, of standard deviation 1."""
    waves = torch.fft.rfft2(torch.randn(shape, generator=generator))
    frequency = torch.hypot(
        torch.fft.fftfreq(shape[-2])[:, None] * shape[-2], torch.fft.rfftfreq(shape[-1]) * shape[-1]
    )
    field = torch.fft.irfft2(waves / frequency.clamp(min=1), s=shape[-2:])
    return field / field.std()


class DiagonalMixture(Dressed):
    """D(x, sigma) = E[x0 | x], sigma = b, a = 1, of axis-aligned Gaussians about random means in 64
    dimensions ([B, 4, 4, 4]).
    """

    def __init__(self, seed: int, centres: int, width: float, sampling: Any) -> None:
        super().__init__(sampling, (4, 4, 4))
        generator = torch.Generator().manual_seed(seed)
        self.mu = torch.randn(centres, 64, generator=generator)
        self.weights = 0.3 + torch.rand(centres, generator=generator)
        self.variance = (width * (0.5 + torch.rand(centres, 64, generator=generator))) ** 2

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        total = self.variance + sigma[:, None, None] ** 2
        difference = x.flatten(1)[:, None] - self.mu
        logits = self.weights.log() - 0.5 * (difference.square() / total + total.log()).sum(-1)
        means = self.mu + self.variance / total * difference
        return (logits.softmax(-1)[..., None] * means).sum(1).view_as(x)
