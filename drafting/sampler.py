# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine as a ComfyUI SAMPLER: any sampler function, its model's predictions drafted and refined."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
from torch import Tensor

from ..common.alpha import alpha_of
from ..common.sampler_trace import NoiseSampler, Predict, SamplerRun, Trace, Untraceable, trace
from .backends import choose_backend
from .backends.base import Backend, Request
from .errors import Undraftable
from .noise import NoiseTape
from .policies import Mode, Policy
from .predictors import DRAFTS, DraftsName
from .report import Report
from .space import Space
from .speculation import SpeculativeModel, StandIn
from .window import Drafting

log = logging.getLogger("dizzydiff")

ROUNDING = 1.05
"""Used drafts this many tolerances off are no rounding any more."""
BROWNIAN = {
    k_diffusion.sample_dpmpp_sde: True,
    k_diffusion.sample_dpmpp_2m_sde: True,
    k_diffusion.sample_dpmpp_2m_sde_heun: True,
    k_diffusion.sample_dpmpp_3m_sde: True,
    k_diffusion.sample_dpmpp_sde_gpu: False,
    k_diffusion.sample_dpmpp_2m_sde_gpu: False,
    k_diffusion.sample_dpmpp_2m_sde_heun_gpu: False,
    k_diffusion.sample_dpmpp_3m_sde_gpu: False,
}
"""Sampler functions whose own noise is a Brownian tree, and whether it lives on the CPU; all others draw from
the seed.
"""


@dataclass(frozen=True)
class Settings:
    """What the nodes ask for. width 0: as many states a round as the backend thinks best."""

    mode: Mode = "verified"
    width: int = 0
    tolerance: float = 0.01
    drafts: DraftsName = "extrapolated"

    @property
    def nothing_to_draft(self) -> bool:
        return self.width == 1 or (self.mode == "verified" and self.tolerance == 0)


class DraftRefine(comfy.samplers.Sampler):
    """Any sampler of ComfyUI, its model's predictions drafted and refined in parallel."""

    def __init__(
        self,
        inner: comfy.samplers.Sampler,
        settings: Settings,
        *,
        on_report: Callable[[Report], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.inner, self.settings = inner, settings
        self._on_report, self._clock = on_report, clock

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        inner = self.inner
        if isinstance(inner, comfy.samplers.KSAMPLER):
            inner = comfy.samplers.KSAMPLER(self._run, inner.extra_options, inner.inpaint_options)
        else:
            _say_undrafted(f"{type(inner).__name__} is not made of a sampler function")
        return inner.sample(
            model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )

    def _run(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool,
        **options: Any,
    ) -> Tensor:
        function = self.inner.sampler_function
        started = self._clock()
        try:
            speculative, backend = self._speculative(function, model, x, sigmas, extra_args, options)
        except (Undraftable, Untraceable) as why:
            _say_undrafted(str(why))
            return function(
                model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options
            )
        run, noise = bind(function, extra_args, options, disable), speculative.noises.reader()
        result = run(speculative, x, sigmas, callback, noise)
        self._tell(speculative.report, speculative.trace, f"{backend}", self._clock() - started)
        return result

    def _speculative(
        self,
        function: Callable,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        options: dict[str, Any],
    ) -> tuple[SpeculativeModel, Backend]:
        settings = self.settings
        if settings.nothing_to_draft:
            raise Undraftable("a width of 1 or a tolerance of 0 leaves nothing to draft")
        if options.get("s_churn"):
            raise Undraftable("s_churn draws noise that a draft cannot draw again")
        backend = choose_backend(Request(model, extra_args["model_options"], settings.width, self._clock))
        run = bind(function, extra_args, options, disable=True)
        found = trace_sampler(run, model, backend, sigmas, x.ndim)
        space = Space(alpha_of(model.inner_model.inner_model.model_sampling))
        policy = Policy(settings.mode, backend.width, settings.tolerance)
        draw = options.get("noise_sampler") or noise_of(function, x, sigmas, extra_args.get("seed"))
        speculative = SpeculativeModel(
            model,
            found,
            evaluate=backend,
            deliver=backend.deliver,
            noises=NoiseTape(draw, found.noise_sigmas, sigmas),
            drafting=Drafting(policy, DRAFTS[settings.drafts](found.stochastic), space),
        )
        return speculative, backend

    def _tell(self, report: Report, found: Trace, where: str, seconds: float) -> None:
        log.info(
            "DizzyDiff: %d steps (%d predictions) in %d rounds on %s, %d drafts dropped, largest deviation "
            "%.1e, %.2f s.",
            1 + found.calls[-1].step,
            len(found.calls),
            len(report.rounds),
            where,
            report.rejections,
            report.largest_deviation,
            seconds,
        )
        settings = self.settings
        if settings.mode == "verified" and report.largest_deviation > ROUNDING * settings.tolerance:
            log.warning(
                "DizzyDiff: this sampler arrived %.1e from a draft where %.1e was allowed: it steps "
                "otherwise than a dry run of it does, so the image is not the plain sampler's. Draw it with "
                "a "
                "width of 1.",
                report.largest_deviation,
                settings.tolerance,
            )
        if self._on_report is not None:
            self._on_report(report)


def noise_of(function: Callable, x: Tensor, sigmas: Tensor, seed: int | None) -> NoiseSampler:
    """The noise that ``function`` would draw by itself."""
    if function in BROWNIAN:
        low, high = sigmas[sigmas > 0].min(), sigmas.max()
        return k_diffusion.BrownianTreeNoiseSampler(x, low, high, seed=seed, cpu=BROWNIAN[function])
    return k_diffusion.default_noise_sampler(x, seed=seed)


def bind(
    function: Callable, extra_args: dict[str, Any], options: dict[str, Any], disable: bool
) -> SamplerRun:
    """A sampler function with all but model, state, sigmas, callback and noise bound."""
    noisy = "noise_sampler" in inspect.signature(function).parameters

    def run(model: Any, x: Tensor, sigmas: Tensor, callback: Any, noise: NoiseSampler) -> Tensor:
        bound = {**options, "noise_sampler": noise} if noisy else options
        return function(
            model, x, sigmas, extra_args=dict(extra_args), callback=callback, disable=disable, **bound
        )

    return run


def trace_sampler(run: SamplerRun, model: Any, backend: Backend, sigmas: Tensor, ndim: int) -> Trace:
    """The trace of a sampler that gets its predictions from ``backend``. Raises :class:`Untraceable`."""

    def stand_in(predict: Predict) -> StandIn:
        def deliver(x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
            return backend.deliver(predict(x, sigma), x, float(sigma[0]), arguments)

        return StandIn(model, deliver)

    return trace(run, stand_in, sigmas, ndim)


def _say_undrafted(why: str) -> None:
    log.warning("DizzyDiff: this sampler runs as it is, undrafted: %s.", why)
