# SPDX-License-Identifier: GPL-3.0-or-later
"""The feature's one meeting with ComfyUI: a MODEL measured through core's own sampling, and SIGMAS made for
it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..common.alpha import is_flow
from .errors import CannotMeasure
from .grids import blend, for_denoise, make_grid
from .identity import digest_of, identity
from .linearized import LinearizedModel, linearize
from .profile import Effort, Profile, Progress, join, level_sigmas, measure
from .solvers import DPMPP_2M, EULER, HEUN, Solver
from .store import Store

FALLBACK = "simple"
"""Core's scheduler where nothing could be measured."""
TWO_CALLS = frozenset(
    {
        "heun",
        "heunpp2",
        "exp_heun_2_x0",
        "exp_heun_2_x0_sde",
        "dpm_2",
        "dpm_2_ancestral",
        "dpmpp_2s_ancestral",
        "dpmpp_2s_ancestral_cfg_pp",
        "dpmpp_sde",
        "dpmpp_sde_gpu",
        "seeds_2",
        "seeds_3",
    }
)
ONE_CALL_OF_ORDER_ONE = frozenset(
    {"euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "ddim", "ddpm", "lcm"}
)
Predict = Callable[[Any, Tensor, Tensor, dict[str, Any]], Tensor]
"""D of a sampler's model at x [B, ...] and sigma [B], with its extra arguments."""


def predict_here(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """On the model's own device."""
    return model(x, sigma, **extra_args)


def solver_of(sampler_name: str) -> Solver:
    """The solver that is most like a sampler of core: two calls a step, order one, or (the rest) several
    steps remembered.
    """
    if sampler_name in TWO_CALLS:
        return HEUN
    return EULER if sampler_name in ONE_CALL_OF_ORDER_ONE else DPMPP_2M


@dataclass(frozen=True)
class Subject:
    """What is measured: a model as one graph uses it. latent: its LATENT, of which only the shape counts.

    devices: over which ``predict`` spreads the probes; each evaluates as many at once as the latent has rows.
    """

    model: Any
    positive: list
    negative: list
    cfg: float
    latent: dict[str, Any]
    seed: int = 0
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


@dataclass(frozen=True)
class Measured:
    """A model's noise levels, and what was measured of it: None where measuring failed, for ``reason``."""

    sampling: Any
    linearized: LinearizedModel | None
    reason: str = ""

    def sigmas(self, steps: int, denoise: float, solver: Solver, share: float = 0.0) -> Tensor:
        """SIGMAS [steps + 1] in fp32 for a solver; ``share`` in [0, 1] of core's simple grid
        is mixed in.
        """
        return for_denoise(lambda n: self._whole(n, solver, share), steps, denoise).float()

    def _whole(self, steps: int, solver: Solver, share: float) -> Tensor:
        core = core_grids(self.sampling, steps)
        if self.linearized is None:
            logging.warning(
                "DizzyDiff: no stability grid: %s Sampling with core's %s sigmas.", self.reason, FALLBACK
            )
            return core[FALLBACK].double()
        return blend(make_grid(self.linearized, steps, solver, list(core.values())), core[FALLBACK], share)


def core_grids(sampling: Any, steps: int) -> dict[str, Tensor]:
    """What core's schedulers give for so many steps; kl_optimal and linear_quadratic need more than one."""
    names = [name for name in comfy.samplers.SCHEDULER_NAMES if steps > 1 or name == FALLBACK]
    return {name: comfy.samplers.calculate_sigmas(sampling, name, steps) for name in names}


def measure_model(subject: Subject, effort: Effort, progress: Progress) -> Profile:
    """The profile of a model. Each device evaluates as many probes at once as the latent has rows, one where
    memory holds no more.

    Raises CannotMeasure where the model gives no profile, and torch.OutOfMemoryError where it does not hold
    one row.
    """
    sampling = subject.sampling
    sigma_max, sigma_min = float(sampling.sigma_max), float(sampling.sigma_min)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise CannotMeasure(
            f"The model's noise levels go from {sigma_min} to {sigma_max}; expected 0 < lowest < highest."
        )
    sigmas = level_sigmas(sigma_max, sigma_min, effort.levels, subject.flow)
    waiting = list(
        subject.noise(effort.probes).split(subject.devices * max(1, len(subject.latent["samples"])))
    )
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
        except torch.OutOfMemoryError:
            if len(noise) == 1:
                raise
            comfy.model_management.soft_empty_cache()
            waiting = [*noise.split(1), *(row for batch in waiting for row in batch.split(1))]
    return join(profiles)


def _measure_batch(
    subject: Subject, noise: Tensor, sigmas: Tensor, directions: int, progress: Progress
) -> Profile:
    measured: list[Profile] = []

    def probe(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool
    ) -> Tensor:
        def denoise(x: Tensor, sigma: float) -> Tensor:
            return subject.predict(model, x, x.new_full([len(x)], sigma), extra_args)

        measured.append(measure(denoise, x, sigmas, directions, subject.flow, progress))
        return x

    comfy.sample.sample_custom(
        subject.model,
        noise,
        subject.cfg,
        comfy.samplers.KSAMPLER(probe),
        sigmas.float(),
        subject.positive,
        subject.negative,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=subject.seed,
    )
    return measured[0]


def measured_once(subject: Subject, effort: Effort, store: Store, progress: Progress) -> Measured:
    """From the store, or measured now and stored; nothing linearised where the model cannot be measured.

    Interruptions pass through, and so does a lack of memory for one row, in which nothing could be sampled
    either: ComfyUI says so, and frees what it can.
    """
    try:
        key = key_of(subject, effort)
        profile = store.load(key)
        if profile is None:
            profile = measure_model(subject, effort, progress)
            store.save(key, profile)
        return Measured(subject.sampling, linearize(profile))
    except torch.OutOfMemoryError:
        raise
    except (CannotMeasure, RuntimeError) as error:
        return Measured(subject.sampling, None, str(error))


def key_of(subject: Subject, effort: Effort) -> str:
    """The model's identity, CFG, resolution class, and effort. A profile serves every solver, so none is
    named.

    Resolution class: size and frames of the latent to the nearest factor of sqrt(2).
    """
    shape = subject.latent["samples"].shape
    resolution = [
        shape[1],
        *(round(2 * math.log2(max(1, n))) for n in shape[2:-2]),
        round(2 * math.log2(shape[-2] * shape[-1])),
    ]
    sampling = subject.sampling
    kind = [each.__name__ for each in type(sampling).__mro__[:-1]]
    noise = (kind, float(sampling.sigma_min), float(sampling.sigma_max), digest_of(sampling.sigmas))
    return repr(
        ("profile", identity(subject.model), noise, round(subject.cfg, 4), resolution, effort, subject.seed)
    )
