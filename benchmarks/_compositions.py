# SPDX-License-Identifier: GPL-3.0-or-later
"""What other packs put round a model: patches, conditions with other rows than the latent or with ranges that
end at a sampled noise level, guiders, and samplers that are not what they seem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ._patches import (
    accumulates_change,
    asks_one_sigma,
    centres_rows,
    counts_calls,
    every_second_call,
    looks_up_step,
    momentum,
    normalises_over_batch,
    reads_first_sigma,
    sets_guider,
)
from ._sampling import cfg_guider, levels
from .networks.subject import Subject

CFG = 4.0


def unchanged(value: Any) -> Any:
    return value


def default_guider(subject: Subject, model: Any) -> Any:
    return cfg_guider(model, subject.positive, subject.negative, CFG)


def euler(_subject: Subject, _model: Any) -> Any:
    return named_sampler("euler")


def named_sampler(name: str) -> Any:
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


@dataclass(frozen=True)
class Composition:
    """A graph: what is put on the MODEL before Draft Devices, the GUIDER, the SAMPLER that is drafted, what
    is put round the drafted SAMPLER, and what is sampled.
    """

    name: str
    patch: Callable[[Subject, Any], Any] = lambda subject, model: model
    guider: Callable[[Subject, Any], Any] = default_guider
    sampler: Callable[[Subject, Any], Any] = euler
    around: Callable[[Any], Any] = unchanged
    sigmas: Callable[[Tensor], Tensor] = unchanged
    rows: int = 2
    seed: int = 7


def prompts_of_three_rows(subject: Subject, model: Any) -> Any:
    """A prompt with three rows; core takes the first for fewer latents, and repeats them for more."""
    rows = torch.cat([subject.network.prompt(number)[0][0] for number in (0, 2, 3)])
    return cfg_guider(model, [[rows, subject.positive[0][1]]], subject.negative, CFG)


def masks_of_three_rows(subject: Subject, model: Any) -> Any:
    import node_helpers

    masks = torch.zeros(3, 64, 64)
    masks[0, :32], masks[1, 32:], masks[2, :, 32:] = 1, 1, 1
    masked = node_helpers.conditioning_set_values(subject.positive, {"mask": masks, "mask_strength": 1.0})
    return cfg_guider(model, masked + subject.network.prompt(2), subject.negative, CFG)


def changes_at(share: float, subject: Subject, model: Any) -> Any:
    """One prompt until a share of the run, another from there on."""
    import node_helpers

    first = node_helpers.conditioning_set_values(
        subject.positive, {"start_percent": 0.0, "end_percent": share}
    )
    second = node_helpers.conditioning_set_values(
        subject.network.prompt(2), {"start_percent": share, "end_percent": 1.0}
    )
    return cfg_guider(model, first + second, subject.negative, CFG)


def changes_at_sampled_level(index: int, subject: Subject, model: Any) -> Any:
    """One prompt until a noise level that is sampled, another from there on, decided by its last bit."""
    sampling = model.get_model_object("model_sampling")
    boundary = float(levels(model, "euler", 8)[index])
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        low, high = (share, high) if float(sampling.percent_to_sigma(share)) > boundary else (low, share)
    return changes_at(high, subject, model)


def own_guider(subject: Subject, model: Any) -> Any:
    """A guider of another pack: its strength falls with the noise level, which it takes as one number."""
    import comfy.samplers

    class Falling(comfy.samplers.CFGGuider):
        def predict_noise(
            self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None
        ) -> Any:
            sigma, prompts = timestep.max().item(), [self.conds["positive"], self.conds["negative"]]
            cond, uncond = comfy.samplers.calc_cond_batch(
                self.inner_model, prompts, x, timestep, model_options or {}
            )
            return uncond + (1 + 3 * sigma / (1 + sigma)) * (cond - uncond)

    guider = Falling(model)
    guider.set_conds(subject.positive, subject.negative)
    return guider


def wrapped(sampler: Any) -> Any:
    """A sampler that is given a SAMPLER and calls its function on a model of its own, at lower sigmas."""
    import comfy.samplers

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


def silent_sampler(_subject: Subject, _model: Any) -> Any:
    """Euler's steps by a function that reports all steps but the last."""
    import comfy.samplers

    def stepping(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Any:
        for i, (sigma, after) in enumerate(pairwise(sigmas)):
            denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            if callback is not None and i < len(sigmas) - 2:
                callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = x + (x - denoised) / sigma * (after - sigma)
        return x

    return comfy.samplers.KSAMPLER(stepping)


def own_noise(_subject: Subject, _model: Any) -> Any:
    """DPM++ 2M SDE's function as another object that draws its noise from a generator of its own."""
    import comfy.k_diffusion.sampling as k_diffusion
    import comfy.samplers

    def noisy(model: Any, x: Tensor, sigmas: Tensor, noise_sampler: Any = None, **rest: Any) -> Tensor:
        generator = torch.Generator().manual_seed(rest["extra_args"].get("seed", 0) % 2**32)

        def fresh(sigma: Any, after: Any) -> Tensor:
            return torch.randn(x.shape, generator=generator).to(x)

        return k_diffusion.sample_dpmpp_2m_sde(model, x, sigmas, noise_sampler=fresh, **rest)

    return comfy.samplers.KSAMPLER(noisy)


def grows(_subject: Subject, _model: Any) -> Any:
    """A sampler whose state becomes larger on the way."""
    import comfy.samplers

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


def rises_midway(sigmas: Tensor) -> Tensor:
    """Noise levels that go up once, as restarts do."""
    return torch.cat([sigmas[:5], sigmas[3:]])


def sampler_named(name: str) -> Callable[[Subject, Any], Any]:
    return lambda subject, model: named_sampler(name)


COMPOSITIONS = (
    Composition("nothing"),
    Composition("reads the first sigma until .35", reads_first_sigma(0.0, 0.35)),
    Composition("reads the first sigma from .5 on", reads_first_sigma(0.5, 1.0)),
    Composition("asks for one sigma", asks_one_sigma),
    Composition("looks up its step", looks_up_step),
    Composition("normalises over the batch", normalises_over_batch),
    Composition("centres the rows", centres_rows),
    Composition("caches every second call", every_second_call),
    Composition("caches while little changes", accumulates_change),
    Composition("guides with momentum", momentum),
    Composition("counts its calls", counts_calls),
    Composition("sets the guider's CFG", sets_guider),
    Composition("three prompts on two latents", guider=prompts_of_three_rows),
    Composition("three prompts on four latents", guider=prompts_of_three_rows, rows=4),
    Composition("three masks on two latents", guider=masks_of_three_rows),
    Composition("changes prompt at .3", guider=partial(changes_at, 0.3)),
    Composition("changes prompt at a sampled sigma", guider=partial(changes_at_sampled_level, 3)),
    Composition("guider of another pack", guider=own_guider),
    Composition("sampler inside a sampler", around=wrapped),
    Composition("sampler that hides its last step", sampler=silent_sampler),
    Composition("sampler with noise of its own", sampler=own_noise),
    Composition("sampler that grows its state", sampler=grows),
    Composition("sigmas that rise midway", sigmas=rises_midway),
    Composition("dpmpp_2m_sde", sampler=sampler_named("dpmpp_2m_sde")),
    Composition("largest seed, euler_ancestral", sampler=sampler_named("euler_ancestral"), seed=2**64 - 1),
    Composition("largest seed, dpmpp_sde", sampler=sampler_named("dpmpp_sde"), seed=2**64 - 1),
)
