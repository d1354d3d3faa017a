# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's behaviour along its own trajectories, measured by calling it: no gradients, no second copy.

The samplers' equation is dx/dsigma = v = (x - D(x, sigma)) / sigma, for eps, v and flow models alike, with
velocity Jacobian J = (I - dD/dx) / sigma. A probe is one trajectory from its own noise. Along it D is
measured at every level, and dD/dx by
differences within the few directions in which D itself moves: there local errors arise, and there they grow
or die.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import CannotMeasure

Denoiser = Callable[[Tensor, float], Tensor]
"""D(x [P, ...], sigma) -> [P, ...]."""
Progress = Callable[[int, int], None]
"""Told (calls made, calls in all) after each call; may raise to interrupt."""

FAINT = 0.03
"""A signal beside noise of 1 that nothing can be told from."""
REACH = 0.3
"""Length of a difference in units of sigma: the middle of .1 to .5, where rounding and curvature both stay
small.
"""


@dataclass(frozen=True)
class Effort:
    """How much is measured. One call is one evaluation of the model on one latent (with CFG, of both
    conditions).

    levels: noise levels of a trajectory; probes: trajectories; directions: of differences, measured at every
    other level.
    """

    levels: int
    probes: int
    directions: int

    @property
    def calls(self) -> int:
        return self.probes * (self.levels + self.directions * len(response_levels(self.levels)))


QUICK = Effort(levels=12, probes=5, directions=1)
"""95 calls."""
THOROUGH = Effort(levels=24, probes=12, directions=1)
"""444 calls."""


@dataclass(frozen=True)
class Profile:
    """What was measured, in float64, in an orthonormal basis of each probe whose first k vectors are the
    directions.

    sigmas: [L], falling; states and denoised: [P, L, r]; responses: [P, M, k, k], dD/dx at
    ``response_levels(L)``;
    flow: whether x = (1 - sigma) x0 + sigma n; calls: what it cost.
    """

    sigmas: Tensor
    states: Tensor
    denoised: Tensor
    responses: Tensor
    flow: bool
    calls: int

    @property
    def directions(self) -> int:
        return self.responses.shape[-1]

    @property
    def image_length(self) -> float:
        """R, the RMS length of the probes' images."""
        return float(self.denoised[:, -1].square().sum(-1).mean().sqrt())


def join(profiles: Sequence[Profile]) -> Profile:
    """Probes measured apart, at the same levels, as one profile."""
    first = profiles[0]
    states, denoised, responses = (
        torch.cat([getattr(profile, name) for profile in profiles])
        for name in ("states", "denoised", "responses")
    )
    return Profile(
        first.sigmas, states, denoised, responses, first.flow, sum(profile.calls for profile in profiles)
    )


def response_levels(levels: int) -> list[int]:
    """The levels at which dD/dx is measured: every other one, and the last."""
    return [*range(0, levels - 1, 2), levels - 1]


def coordinate(sigma: Tensor, flow: bool) -> Tensor:
    """A rising function of sigma > 0 with levels enough where anything can happen: arctan(sigma / alpha) +
    log(sigma / alpha) / 4.

    The angle resolves the middle, where a signal of unit variance appears, and the logarithm the ends; alpha
    is no less than ``FAINT``, so that pure noise has its place too.
    """
    sigma = sigma.double()
    signal = torch.hypot(1 - sigma, torch.full_like(sigma, FAINT)) if flow else torch.ones_like(sigma)
    return torch.atan2(sigma, signal) + (sigma / signal).log() / 4


def level_sigmas(sigma_max: float, sigma_min: float, n: int, flow: bool) -> Tensor:
    """n falling levels, evenly spaced in :func:`coordinate`: [n] in float64, the ends kept exactly."""
    fine = torch.logspace(math.log10(sigma_max), math.log10(sigma_min), 4001, dtype=torch.float64)
    c = coordinate(fine, flow)
    targets = torch.linspace(float(c[-1]), float(c[0]), n, dtype=torch.float64).flip(0)
    i = torch.searchsorted(c.flip(0), targets).clamp(1, len(c) - 1)
    low, high = c.flip(0)[i - 1], c.flip(0)[i]
    logs = fine.log().flip(0)
    sigmas = (logs[i - 1] + (targets - low) / (high - low) * (logs[i] - logs[i - 1])).exp()
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas


@torch.no_grad()
def measure(
    denoise: Denoiser, start: Tensor, sigmas: Tensor, directions: int, flow: bool, progress: Progress
) -> Profile:
    """Run the probes through the levels and measure D and dD/dx.

    start: [P, ...], states at sigmas[0]; sigmas: [L], falling, positive, L >= 4. Raises CannotMeasure where
    the model answers with something that is not finite.
    """
    calls, made = len(sigmas) + directions * len(response_levels(len(sigmas))), 0

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal made
        value = denoise(x.to(start).reshape(start.shape), float(sigma)).flatten(1).double().cpu()
        if not bool(value.isfinite().all()):
            raise CannotMeasure(
                f"The model's answer at sigma {float(sigma):.4g} is not finite; expected a model that can "
                f"be sampled."
            )
        made += 1
        progress(made, calls)
        return value

    states, denoised = _trajectories(D, start, sigmas)
    basis, V = _bases(states, denoised, directions)
    responses = _responses(D, states, denoised, V, sigmas)
    states, denoised = (torch.einsum("lpd,pdr->plr", vectors, basis) for vectors in (states, denoised))
    return Profile(sigmas.double().cpu(), states, denoised, responses, flow, calls * len(start))


def _trajectories(
    D: Callable[[Tensor, Tensor], Tensor], start: Tensor, sigmas: Tensor
) -> tuple[Tensor, Tensor]:
    """States and predictions [L, P, d] by DPM-Solver++(2M) through the levels."""
    x = start.flatten(1).double().cpu()
    states, denoised = [], []
    for i, sigma in enumerate(sigmas):
        states.append(x)
        denoised.append(D(x, sigma))
        if i + 1 < len(sigmas):
            h = math.log(float(sigma) / float(sigmas[i + 1]))
            r = math.log(float(sigmas[i - 1]) / float(sigma)) / h if i else math.inf
            ahead = denoised[i] + (denoised[i] - denoised[i - 1]) / (2 * r) if i else denoised[i]
            x = math.exp(-h) * x - math.expm1(-h) * ahead
    return torch.stack(states), torch.stack(denoised)


def _bases(states: Tensor, denoised: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of each probe: an orthonormal basis [P, d, r] of all its vectors, and the first k, in which D moves
    most [P, d, k].
    """
    moves = denoised.diff(dim=0).permute(1, 2, 0)
    V = torch.linalg.svd(moves, full_matrices=False).U[..., :k]
    rest = torch.cat([states[:1], denoised]).permute(1, 2, 0)
    basis, _ = torch.linalg.qr(torch.cat([V, rest], dim=2))
    signs = torch.einsum("pdk,pdk->pk", V, basis[..., :k]).sign()
    return torch.cat([basis[..., :k] * signs[:, None], basis[..., k:]], dim=2), V


def _responses(
    D: Callable[[Tensor, Tensor], Tensor], states: Tensor, denoised: Tensor, V: Tensor, sigmas: Tensor
) -> Tensor:
    """V^T (dD/dx) V [P, M, k, k]: column j from one difference along direction j.

    The differences of neighbouring levels have opposite signs, so that curvature cancels from their mean at
    no cost.
    """
    levels = response_levels(len(sigmas))
    rows = []
    for n, i in enumerate(levels):
        step = (-1) ** n * REACH * float(sigmas[i])
        change = [
            (D(states[i] + step * V[..., j], sigmas[i]) - denoised[i]) / step for j in range(V.shape[-1])
        ]
        rows.append(
            torch.einsum("pdi,jpd->pij", V, torch.stack(change)) if change else V.new_zeros(len(V), 0, 0)
        )
    H = torch.stack(rows, dim=1)
    smooth = H.clone()
    smooth[:, 1:-1] = (H[:, :-2] + 2 * H[:, 1:-1] + H[:, 2:]) / 4
    return smooth
