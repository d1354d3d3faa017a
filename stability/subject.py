# SPDX-License-Identifier: GPL-3.0-or-later
"""A MODEL as one graph uses it, measured through ComfyUI's own sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..common.alpha import is_flow
from ..common.memory import is_out_of_memory
from .errors import CannotMeasure
from .profile import Denoiser, Effort, Profile, Progress, join, level_sigmas, measure

CHECK_CALLS = 2
"""Of one latent, to see that predictions depend on state and noise level alone."""
SAME_PREDICTION_RTOL = 0.03
"""Of the predicted noise: more than half precision's rounding, less than what any other sigma changes."""
R = TypeVar("R")
Predict = Callable[[Any, Tensor, Tensor, dict[str, Any]], Tensor]
"""D of a sampler's model at x [B, ...] and sigma [B], with its extra arguments."""


def lacks_memory(error: BaseException) -> bool:
    return is_out_of_memory(error, comfy.model_management.is_oom)


def predict_here(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """On the model's own device."""
    return model(x, sigma, **extra_args)


@dataclass(frozen=True)
class Subject:
    """What is measured: a model as one graph uses it. latent: its LATENT, of which only the shape counts.

    devices: over which ``predict`` spreads the probes; each evaluates as many at once as the latent has rows.
    guider: a GUIDER that is sampled in place of core's own with these conditionings and CFG.
    """

    model: Any
    positive: list
    negative: list
    cfg: float
    latent: dict[str, Any]
    seed: int = 0
    guider: Any = None
    devices: int = 1
    predict: Predict = predict_here

    @property
    def sampling(self) -> Any:
        return self.model.get_model_object("model_sampling")

    @property
    def flow(self) -> bool:
        return is_flow(self.sampling)

    def noise(self, probes: int) -> Tensor:
        """[probes, ...]: the same for a seed, however many rows are evaluated at once."""
        samples = self.latent["samples"]
        if samples.is_nested:
            raise CannotMeasure(
                "This model samples several latents at once (such as video with sound); expected one."
            )
        empty = torch.zeros_like(
            comfy.sample.fix_empty_latent_channels(
                self.model,
                samples[:1],
                self.latent.get("downscale_ratio_spacial"),
                self.latent.get("downscale_ratio_temporal"),
            )
        )
        return comfy.sample.prepare_noise(
            empty.repeat_interleave(probes, dim=0), self.seed, list(range(probes))
        )


def measure_model(subject: Subject, effort: Effort, progress: Progress) -> Profile:
    """The profile of a model. Each device evaluates as many probes at once as the latent has rows, one where
    memory holds no more.

    Raises CannotMeasure where the model gives no profile, and what ran out of memory where it does not hold
    one row.
    """
    sampling = subject.sampling
    sigma_max, sigma_min = float(sampling.sigma_max), float(sampling.sigma_min)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise CannotMeasure(
            f"The model's noise levels go from {sigma_min} to {sigma_max}; expected 0 < lowest < highest."
        )
    sigmas = level_sigmas(sigma_max, sigma_min, effort.levels, subject.flow)
    noise = subject.noise(effort.probes)
    _refuse_other_dependences(subject, noise[:1], sigmas)
    waiting = list(noise.split(subject.devices * max(1, len(subject.latent["samples"]))))
    profiles: list[Profile] = []
    while waiting:
        noise = waiting.pop(0)

        def told(
            made: int,
            of: int,
            rows: int = len(noise),
            before: int = sum(profile.calls for profile in profiles),
        ) -> None:
            progress(before + made * rows, of * effort.probes)

        try:
            profiles.append(_measure_batch(subject, noise, sigmas, effort.directions, told))
        except (RuntimeError, MemoryError) as error:
            if len(noise) == 1 or not lacks_memory(error):
                raise
            comfy.model_management.soft_empty_cache()
            waiting = [*noise.split(1), *(row for batch in waiting for row in batch.split(1))]
    profile = join(profiles)
    return replace(profile, calls=profile.calls + CHECK_CALLS)


def _measure_batch(
    subject: Subject, noise: Tensor, sigmas: Tensor, directions: int, progress: Progress
) -> Profile:
    def work(denoise: Denoiser, x: Tensor, sigmas: Tensor) -> Profile:
        return measure(denoise, x, sigmas[:-1], directions, subject.flow, progress)

    return _inside_sampling(subject, noise, torch.cat([sigmas, sigmas.new_zeros(1)]), work)


def _refuse_other_dependences(subject: Subject, noise: Tensor, sigmas: Tensor) -> None:
    """Raise CannotMeasure unless the prediction at the highest level is the same in runs over other sigmas.

    ``CHECK_CALLS`` calls. MeanFlow networks predict the mean velocity down to the run's next sigma:
    what was measured between some levels says nothing of others.
    """

    def predict(denoise: Denoiser, x: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        return x.cpu().float(), denoise(x, float(sigmas[0])).cpu().float()

    zero = sigmas.new_zeros(1)
    runs = (torch.cat([sigmas, zero]), torch.cat([sigmas[:1], sigmas[len(sigmas) // 2 :], zero]))
    (x, D), (_, D_other) = (_inside_sampling(subject, noise, run, predict) for run in runs)
    if bool((D_other - D).norm() > SAME_PREDICTION_RTOL * (x - D).norm()):
        raise CannotMeasure(
            "The model's prediction at a noise level depends on the other sigmas of the run, as that of "
            "MeanFlow networks does, or on chance; expected one that the state and its noise level decide."
        )


def _inside_sampling(
    subject: Subject, noise: Tensor, sigmas: Tensor, work: Callable[[Denoiser, Tensor, Tensor], R]
) -> R:
    """What ``work(denoise, x, sigmas)`` returns where ComfyUI would run a sampler over ``sigmas``."""
    results: list[R] = []

    def run(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool
    ) -> Tensor:
        def denoise(x: Tensor, sigma: float) -> Tensor:
            return subject.predict(model, x, x.new_full([len(x)], sigma), extra_args)

        results.append(work(denoise, x, sigmas))
        return x

    guider = subject.guider
    if guider is None:
        guider = comfy.samplers.CFGGuider(subject.model)
        guider.set_conds(subject.positive, subject.negative)
        guider.set_cfg(subject.cfg)
    sampler = comfy.samplers.KSAMPLER(run)
    guider.sample(
        noise, torch.zeros_like(noise), sampler, sigmas.float(), disable_pbar=True, seed=subject.seed
    )
    return results[0]
