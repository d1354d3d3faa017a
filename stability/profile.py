# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's behaviour along its own trajectories, measured by calling it: no gradients, no second copy.

The samplers' equation is dx/dsigma = v = (x - D(x, sigma)) / sigma, for eps, v and flow models alike, with
velocity Jacobian J = (I - dD/dx) / sigma. A probe is one trajectory from its own noise. Along it D is
measured at every level and dD/dx by differences within the few directions in which D itself moves: there
local errors arise, and there they grow or shrink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..common.alpha import alpha_flow, alpha_ve
from ..common.steps import dpmpp_2m_step
from .errors import BadEffort, CannotMeasure

Denoiser = Callable[[Tensor, float], Tensor]
"""D(x [P, ...], sigma) -> [P, ...]."""
Progress = Callable[[int, int], None]
"""Told (calls made, calls in all) after each call; may raise to interrupt."""

MIN_ALPHA = 0.03
"""A signal beside noise of 1 that nothing can be told from."""
DIFFERENCE = 0.3
"""In units of sigma: the middle of .1 to .5, where rounding and curvature both stay small."""

EFFORT_RANGES = {"levels": (4, 128), "probes": (1, 128), "directions": (0, 8)}
"""A profile's memory grows with levels^2 times probes, and splines need four levels."""


@dataclass(frozen=True)
class Effort:
    """How much is measured. One call is one evaluation of the model on one latent (with CFG, of both
    conditions).
    """

    levels: int
    """Noise levels of a trajectory."""
    probes: int
    """Trajectories."""
    directions: int
    """Of differences, measured at every other level."""

    def __post_init__(self) -> None:
        for name, (least, most) in EFFORT_RANGES.items():
            value = getattr(self, name)
            if not (isinstance(value, int) and least <= value <= most):
                raise BadEffort(f"{name}: got {value!r}; expected a whole number from {least} to {most}.")

    @property
    def calls(self) -> int:
        return self.probes * (self.levels + self.directions * len(response_levels(self.levels)))


QUICK = Effort(levels=12, probes=5, directions=1)
"""95 calls."""
THOROUGH = Effort(levels=24, probes=12, directions=1)
"""444 calls."""


@dataclass(frozen=True)
class Profile:
    """What was measured of P probes at L levels, in float64 on the host.

    Each probe has an orthonormal basis of its own, of r vectors, the first k of which are its directions.
    """

    sigmas: Tensor
    """[L], falling, above 0."""
    states: Tensor
    """x [P, L, r]."""
    denoised: Tensor
    """D [P, L, r]."""
    responses: Tensor
    """dD/dx [P, M, k, k] at ``response_levels(L)``."""
    flow: bool
    """Whether x = (1 - sigma) x0 + sigma n; else x = x0 + sigma n."""
    calls: int
    """Model calls that it cost."""

    def __post_init__(self) -> None:
        """Raises ValueError where the fields are not what they should be, as those of a file may be."""
        L, P = len(self.sigmas), len(self.states)
        r, k = self.states.shape[-1], self.responses.shape[-1]
        shapes = (
            (self.sigmas, (L,)),
            (self.states, (P, L, r)),
            (self.denoised, (P, L, r)),
            (self.responses, (P, len(response_levels(L)), k, k)),
        )
        for tensor, shape in shapes:
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float64:
                raise ValueError(f"it holds {tensor.dtype} {tuple(tensor.shape)}; expected float64 {shape}")
            if not bool(tensor.isfinite().all()):
                raise ValueError("it holds numbers that are not finite")
        if EFFORT_RANGES["levels"][0] > L or P < 1 or k > r:
            raise ValueError(f"it holds {P} probes of {L} levels and {k} directions of {r}")
        if not (bool((self.sigmas.diff() < 0).all()) and float(self.sigmas[-1]) > 0):
            raise ValueError("its noise levels do not fall, or reach 0")
        if type(self.flow) is not bool or type(self.calls) is not int or self.calls < 0:
            raise ValueError(f"its kind is {self.flow!r} and its cost {self.calls!r} calls")

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
    """arctan(sigma / alpha) + ln(sigma / alpha) / 4 of sigma > 0: levels even in it are dense where anything
    can happen.

    The angle resolves the middle, where a signal of unit variance appears (kl_optimal's coordinate), and the
    logarithm the ends. alpha is kept above ``MIN_ALPHA``, so that pure noise has its place too.
    """
    sigma = sigma.double()
    alpha = torch.hypot(alpha_flow(sigma), torch.full_like(sigma, MIN_ALPHA)) if flow else alpha_ve(sigma)
    return torch.atan2(sigma, alpha) + (sigma / alpha).log() / 4


def level_sigmas(sigma_max: float, sigma_min: float, n: int, flow: bool) -> Tensor:
    """n falling levels, evenly spaced in :func:`coordinate`: [n] in float64, the ends kept exactly."""
    fine = torch.logspace(math.log10(sigma_min), math.log10(sigma_max), 4001, dtype=torch.float64)
    c = coordinate(fine, flow).numpy()
    even = np.linspace(c[-1], c[0], n)
    sigmas = torch.from_numpy(np.interp(even, c, fine.log().numpy())).exp()
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
        state = x.to(start.dtype).to(start.device).reshape(start.shape)
        value = denoise(state, float(sigma)).flatten(1).cpu().double()
        if not bool(value.isfinite().all()):
            raise CannotMeasure(
                f"The model's answer at sigma {float(sigma):.4g} is not finite; expected a model that can "
                f"be sampled."
            )
        made += 1
        progress(made, calls)
        return value

    states, denoised = trajectories(D, start, sigmas)
    in_basis, D_in_basis, V = reduced(states, denoised, directions)
    responses = _responses(D, states, denoised, V, sigmas)
    return Profile(sigmas.cpu().double(), in_basis, D_in_basis, responses, flow, calls * len(start))


def reduced(states: Tensor, denoised: Tensor, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    """States and predictions [L, P, d] of P probes in the basis of each, [P, L, r], and the directions in
    which D moves most [P, d, k].
    """
    basis, V = _bases(states, denoised, directions)
    x, D = (torch.einsum("lpd,pdr->plr", vectors, basis) for vectors in (states, denoised))
    return x, D, V


def trajectories(
    D: Callable[[Tensor, Tensor], Tensor], start: Tensor, sigmas: Tensor
) -> tuple[Tensor, Tensor]:
    """States and predictions [L, P, d] by DPM-Solver++(2M) through the levels."""
    h = [math.log(sigma / sigma_next) for sigma, sigma_next in pairwise(sigmas.tolist())]
    x = start.flatten(1).cpu().double()
    states, denoised = [x], [D(x, sigmas[0])]
    for i in range(len(h)):
        D_last, h_last = (denoised[i - 1], h[i - 1]) if i else (None, h[0])
        x = dpmpp_2m_step(x, denoised[i], D_last, h[i], h_last)
        states.append(x)
        denoised.append(D(x, sigmas[i + 1]))
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
        step = (-1) ** n * DIFFERENCE * float(sigmas[i])
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
