# SPDX-License-Identifier: GPL-3.0-or-later
"""SAMPLERs that are not what they seem."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
import torch
from torch import Tensor


def wrapped(sampler: Any) -> Any:
    """A sampler that is given a SAMPLER and calls its function on a model of its own, at lower sigmas."""

    def detailed(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Any:
        def shifted(x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
            return model(x, 0.98 * sigma, **arguments)

        return sampler.sampler_function(
            shifted,
            x,
            sigmas,
            extra_args=extra_args,
            callback=callback,
            disable=disable,
            **sampler.extra_options,
        )

    return comfy.samplers.KSAMPLER(detailed)


def silent_sampler() -> Any:
    """Euler's steps by a function that reports all steps but the last."""

    def stepping(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Any:
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            if callback is not None and i < len(sigmas) - 2:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (x - denoised) / sigma * (after - sigma)
        return x

    return comfy.samplers.KSAMPLER(stepping)


def own_noise() -> Any:
    """DPM++ 2M SDE's function as another object that draws its noise from a generator of its own."""

    def noisy(model: Any, x: Tensor, sigmas: Tensor, noise_sampler: Any = None, **rest: Any) -> Tensor:
        generator = torch.Generator().manual_seed(rest["extra_args"].get("seed", 0) % 2**32)

        def fresh(sigma: Any, after: Any) -> Tensor:
            return torch.randn(x.shape, generator=generator).to(x)

        return k_diffusion.sample_dpmpp_2m_sde(model, x, sigmas, noise_sampler=fresh, **rest)

    return comfy.samplers.KSAMPLER(noisy)


def grows() -> Any:
    """A sampler whose state becomes larger on the way."""

    def growing(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Any:
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (x - denoised) / sigma * (after - sigma)
            if i == 2 and x.ndim == 4:
                x = torch.nn.functional.interpolate(x, scale_factor=2.0)
        return x

    return comfy.samplers.KSAMPLER(growing)
