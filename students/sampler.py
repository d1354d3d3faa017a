# SPDX-License-Identifier: GPL-3.0-or-later
"""The N-step sampler of guided students."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import trange

from ..common.alpha import Alpha, alpha_of, alpha_ve
from ..common.steps import euler_step
from .errors import BadSigmas

Model = Callable[..., torch.Tensor]
NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def renoise(
    x: torch.Tensor,
    sigma_k: torch.Tensor,
    sigma_s: torch.Tensor,
    noise: torch.Tensor,
    alpha: Alpha = alpha_ve,
) -> torch.Tensor:
    """The forward process from sigma_k up to sigma_s:

    r x + sqrt(sigma_s^2 - r^2 sigma_k^2) noise, r = alpha_s / alpha_k.
    """
    r = alpha(sigma_s) / alpha(sigma_k)
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
    alpha: Alpha = alpha_ve,
) -> torch.Tensor:
    """The N-step stochastic sampler of Meng et al. 2023, section 3.3 and algorithm 4, in sigma space.

    Each of the N calls answers for a step of twice the length, from sigma_t over sigma_s to sigma_k; noise
    then takes x one step back, from sigma_k to sigma_s. The last call goes to the last sigma without noise.

    x: [B, ...] at sigmas[0]; sigmas: [N + 1], falling. eta 1 is the paper's stochastic sampler, eta 0 the
    deterministic (DDIM) one; between, sigma_k lies that part of the way from sigma_s. alpha(sigma) is that
    of the forward process. Rising sigmas at eta 0 are the encoder run: from a picture to the noise it could
    have come from. Raises BadSigmas at eta > 0.
    """
    if not 0.0 <= eta <= 1.0:
        raise BadSigmas(f"eta: got {eta}; expected a number from 0 to 1.")
    if eta > 0.0 and bool((sigmas[1:] > sigmas[:-1]).any()):
        raise BadSigmas(
            f"Sigmas that rise, from {sigmas[0]:g} to {sigmas[-1]:g}, with eta {eta:g}. Noise is only added "
            "on the way down: expected eta 0 for encoding a picture."
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
        x = euler_step(x, denoised, sigma_t, sigma_k)
        if eta > 0.0 and not last:
            x = renoise(x, sigma_k, sigma_s, noise_sampler(sigma_t, sigma_s), alpha)
    return x


def sample_student_native(
    model: Model,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> torch.Tensor:
    """:func:`sample_student` as ComfyUI calls samplers: noise from the seed, alpha from the model."""
    from comfy.k_diffusion.sampling import default_noise_sampler

    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")  # type: ignore[attr-defined]
    noise_sampler = noise_sampler or default_noise_sampler(x, seed=(extra_args or {}).get("seed"))
    return sample_student(
        model,
        x,
        sigmas,
        extra_args,
        callback,
        disable,
        eta=eta,
        noise_sampler=noise_sampler,
        alpha=alpha_of(sampling),
    )
