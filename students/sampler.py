# SPDX-License-Identifier: GPL-3.0-or-later
"""The N-step sampler of guided students."""

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import trange

from .errors import BadSigmas

Model = Callable[..., torch.Tensor]
NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def unit_signal(sigma: torch.Tensor) -> torch.Tensor:
    """alpha = 1: x = x0 + sigma noise."""
    return torch.ones_like(sigma)


def flow_signal(sigma: torch.Tensor) -> torch.Tensor:
    """alpha = 1 - sigma: x = (1 - sigma) x0 + sigma noise."""
    return 1.0 - sigma


def ddim_step(
    x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """The deterministic step along the line from x to D: x' = D + (target / sigma)(x - D)."""
    return denoised + (target / sigma) * (x - denoised)


def renoise(
    x: torch.Tensor,
    sigma_k: torch.Tensor,
    sigma_s: torch.Tensor,
    noise: torch.Tensor,
    signal: Callable[[torch.Tensor], torch.Tensor] = unit_signal,
) -> torch.Tensor:
    """The forward process from sigma_k up to sigma_s: r x + sqrt(sigma_s^2 - r^2 sigma_k^2) noise, r =
    alpha_s / alpha_k.
    """
    r = signal(sigma_s) / signal(sigma_k)
    return r * x + (sigma_s**2 - (r * sigma_k) ** 2).clamp(min=0.0).sqrt() * noise


@torch.no_grad()
def sample_student(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    eta: float = 1.0,
    noise_sampler: NoiseSampler,
    signal: Callable[[torch.Tensor], torch.Tensor] = unit_signal,
) -> torch.Tensor:
    """The N-step stochastic sampler of Meng et al. 2023, section 3.3 and algorithm 4, in sigma space.

    Each of the N calls answers for a step of twice the length, from sigma_t over sigma_s to sigma_k; noise
    then takes x one step back, from sigma_k to sigma_s. The last call goes to the last sigma without noise.

    x: [B, ...] at sigmas[0]; sigmas: [N + 1], falling. eta 1 is the paper's stochastic sampler, eta 0 the
    deterministic (DDIM) one; between, sigma_k lies that part of the way from sigma_s. signal(sigma) is alpha
    of the forward process. Rising sigmas at eta 0 are the encoder run: from a picture to the noise it could
    have come from. Raises BadSigmas at eta > 0.
    """
    if eta > 0.0 and bool((sigmas[1:] > sigmas[:-1]).any()):
        raise BadSigmas(
            f"Sigmas that rise, from {sigmas[0]:g} to {sigmas[-1]:g}, with eta {eta:g}. Noise is only added "
            f"on the way down: "
            "expected eta 0 for encoding a picture."
        )
    extra_args = extra_args or {}
    rows = x.new_ones([x.shape[0]])
    steps = len(sigmas) - 1
    for i in trange(steps, disable=disable):
        sigma_t, sigma_s = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma_t * rows, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma_t, "sigma_hat": sigma_t, "denoised": denoised})
        last = i + 1 == steps
        sigma_k = sigma_s if last else sigma_s + eta * (sigmas[i + 2] - sigma_s)
        x = ddim_step(x, denoised, sigma_t, sigma_k)
        if eta > 0.0 and not last:
            x = renoise(x, sigma_k, sigma_s, noise_sampler(sigma_t, sigma_s), signal)
    return x
