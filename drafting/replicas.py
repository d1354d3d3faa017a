# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine as a ComfyUI sampler, and how it evaluates. With ``devices`` the only module of drafting/ that
knows ComfyUI.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from .calls import Answer, NoiseSampler, Plan, SamplerRun, plan
from .coordinates import Space, flow_signal, unit_signal
from .devices import DEVICES
from .errors import Undraftable
from .noise import NoiseTape
from .policies import Mode, Policy
from .speculation import Report, SpeculativeModel, StandIn, State
from .window import Drafting

log = logging.getLogger("dizzydiff")

BATCH_WIDTH = 4
"""States a round where one device takes them as a batch and the user named no width."""
BATCH_PAYS = 0.8
"""A batch of k must cost less than this part of k calls to be kept."""
ASTRAY = 1.05
"""Used drafts this many tolerances off are no rounding any more."""
POST_CFG = "sampler_post_cfg_function"
MULTIGPU = ("multigpu_clones", "multigpu_thread_pool")
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
UNBATCHABLE = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    POST_CFG,
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
    "context_handler",
)
"""Options that may look at one sigma for a whole batch."""


class Evaluator:
    """Predictions of a KSamplerX0Inpaint (masks, then the guider) at several states, one after the other."""

    def __init__(self, model: Any, width: int, own_post_cfg: int) -> None:
        self.model, self.width, self._own = model, width, own_post_cfg

    @property
    def capacity(self) -> int:
        """States the next round may hold."""
        return self.width

    def __call__(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.evaluate(states, arguments)

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        return [
            self.predict(self.model, x, x.new_full([x.shape[0]], sigma), arguments) for x, sigma in states
        ]

    def predict(
        self, model: Any, x: Tensor, sigma: Tensor, arguments: dict[str, Any], **options: Any
    ) -> Tensor:
        """The guider's prediction [P, ...]; ``options`` replace model options.

        A ``*_cfg_pp`` sampler reads uncond through a post-cfg hook of its own. Where it added one (P = 2),
        the hook is left out here, uncond is kept beside the prediction, and :meth:`deliver` calls the hook
        when the sampler gets its answer.
        """
        model_options = comfy.model_patcher.create_model_options_clone(arguments["model_options"])
        for key in MULTIGPU:
            model_options.pop(key, None)
        model_options.update(options)
        if len(model_options.get(POST_CFG, [])) == self._own:
            return model(x, sigma, **{**arguments, "model_options": model_options})[None]
        uncond: list[Tensor] = []

        def keep(report: dict[str, Any]) -> Tensor:
            uncond.append(report["uncond_denoised"])
            return report["denoised"]

        model_options[POST_CFG] = [*model_options[POST_CFG][: self._own], keep]
        denoised = model(x, sigma, **{**arguments, "model_options": model_options})
        return torch.stack([denoised, uncond[-1]])

    def deliver(self, prediction: Tensor, x: Tensor, sigma: float, arguments: dict[str, Any]) -> Tensor:
        """What the sampler gets: the denoised prediction, after its own post-cfg hooks have seen uncond."""
        denoised = prediction[0]
        for hook in arguments.get("model_options", {}).get(POST_CFG, [])[self._own :]:
            denoised = hook({"denoised": denoised, "uncond_denoised": prediction[-1], "input": x})
        return denoised


class Batch(Evaluator):
    """All states of a round as one batch with a sigma a row, on the model's own device."""

    def __init__(
        self, model: Any, width: int, own_post_cfg: int, must_pay: bool, clock: Callable[[], float]
    ) -> None:
        super().__init__(model, width, own_post_cfg)
        self._must_pay, self._clock = must_pay, clock
        self._alone: list[float] = []

    @property
    def capacity(self) -> int:
        return 1 if self._must_pay and len(self._alone) < 2 else self.width

    def __str__(self) -> str:
        return f"batches of up to {self.width}"

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        started = self._clock()
        try:
            predictions = self._batched(states, arguments)
            if self._must_pay:
                float(predictions[-1].flatten()[0])  # waits for the device
        except torch.OutOfMemoryError:
            if len(states) == 1:
                raise
            self.width = max(1, len(states) // 2)
            log.warning(
                "DizzyDiff: a batch of %d states does not fit into memory; going on with %d.",
                len(states),
                self.width,
            )
            comfy.model_management.soft_empty_cache()
            return super().evaluate(states, arguments)
        if self._must_pay:
            self._judge(len(states), self._clock() - started)
        return predictions

    def _judge(self, width: int, seconds: float) -> None:
        """Give up drafting when a batch costs nearly as much as its states apart; the first call of a run
        warms up.
        """
        if width == 1:
            self._alone.append(seconds)
            return
        self._must_pay = False
        cost = seconds / (width * self._alone[-1])
        if cost > BATCH_PAYS:
            self.width = 1
            log.info(
                "DizzyDiff: a batch of %d costs %.0f %% of %d calls here, so this image is sampled without "
                "drafts.",
                width,
                100 * cost,
                width,
            )

    def _batched(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        """States that see the same conditioning go together: its time ranges are decided by one sigma a
        batch.
        """
        groups: dict[tuple, list[int]] = {}
        for i, (_, sigma) in enumerate(states):
            groups.setdefault(self._active(sigma), []).append(i)
        predictions: dict[int, Tensor] = {}
        for rows in groups.values():
            together = self._group([states[i] for i in rows], arguments)
            predictions.update(zip(rows, together.chunk(len(rows), dim=1), strict=True))
        return [predictions[i] for i in range(len(states))]

    def _group(self, states: list[State], arguments: dict[str, Any]) -> Tensor:
        k, rows = len(states), states[0][0].shape[0]
        x = torch.cat([x for x, _ in states])
        sigma = (
            torch.tensor([sigma for _, sigma in states], dtype=x.dtype)
            .repeat_interleave(rows)
            .to(x.device, non_blocking=True)
        )
        if k == 1:
            return self.predict(self.model, x, sigma, arguments)
        model = comfy.samplers.KSamplerX0Inpaint(self.model.inner_model, self.model.sigmas)
        mask, options = arguments.get("denoise_mask"), {}
        if mask is not None:
            model.noise, model.latent_image = (
                _rows(self.model.noise, rows, k),
                _rows(self.model.latent_image, rows, k),
            )
            mask_function = arguments["model_options"].get("denoise_mask_function")
            if mask_function is None:
                mask = _rows(mask, rows, k)
            else:
                of = {"model": self.model.inner_model, "sigmas": self.model.sigmas}
                masks = [mask_function(x.new_full([rows], s), mask, extra_options=of) for x, s in states]
                mask = torch.cat([_rows(each, rows, 1) for each in masks])
                options["denoise_mask_function"] = lambda sigma, mask, extra_options: mask
        return self.predict(model, x, sigma, {**arguments, "denoise_mask": mask}, **options)

    def _active(self, sigma: float) -> tuple:
        """Which conditions, and which of their ControlNets, take part at sigma."""

        def within(start: float | None, end: float | None) -> bool:
            return (start is None or sigma <= start) and (end is None or sigma >= end)

        seen = []
        for conditions in self.model.inner_model.conds.values():
            for condition in conditions:
                seen.append(within(condition.get("timestep_start"), condition.get("timestep_end")))
                control = condition.get("control")
                while control is not None:
                    seen.append(within(*(control.timestep_range or (None, None))))
                    control = control.previous_controlnet
        return tuple(seen)


class Replicas(Evaluator):
    """One prediction of the whole guider per device, in core's threads; the first state on the model's own
    device.

    Core's per-device path is used with a single device named: it moves conditioning, takes the device's
    ControlNets and brings the prediction back. A device that fails is left out from then on and its states
    are evaluated here.
    """

    def __init__(
        self, model: Any, width: int, own_post_cfg: int, clones: dict[torch.device, Any], pool: Any
    ) -> None:
        super().__init__(model, width, own_post_cfg)
        self._clones, self._pool = clones, pool
        self._main, *self._others = clones

    def __str__(self) -> str:
        return ", ".join(str(place) for place in (self._main, *self._others))

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        places = [self._main, *self._others]
        shares = {place: list(range(i, len(states), len(places))) for i, place in enumerate(places)}
        busy = [place for place in self._others if shares[place]]
        for place in busy:
            self._pool.submit(place, self._share, place, [states[i] for i in shares[place]], arguments)
        predictions: dict[int, Tensor] = {}
        try:
            for i in shares[self._main]:
                predictions[i] = super().evaluate([states[i]], arguments)[0]
        finally:
            answers = {place: self._pool.get_result(place) for place in busy}
        for place, (result, error) in answers.items():
            if error is None:
                predictions.update(zip(shares[place], result, strict=True))
            elif not isinstance(error, Exception):
                raise error
            else:
                self._drop(place, error)
                for i in shares[place]:
                    predictions[i] = super().evaluate([states[i]], arguments)[0]
        return [predictions[i] for i in range(len(states))]

    def _share(self, place: torch.device, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        """What one worker does: each thread has its own inference mode and its own options."""
        with torch.inference_mode():
            clones = {place: self._clones[place]}
            rows = [(x, x.new_full([x.shape[0]], sigma)) for x, sigma in states]
            return [
                self.predict(self.model, x, sigma, arguments, multigpu_clones=clones) for x, sigma in rows
            ]

    def _drop(self, place: torch.device, error: Exception) -> None:
        self.width = max(1, self.width * len(self._others) // (1 + len(self._others)))
        self._others.remove(place)
        log.warning(
            "DizzyDiff: %s failed (%s: %s); its states are evaluated on %s and it is left out for the rest "
            "of this image.",
            place,
            type(error).__name__,
            error,
            self._main,
        )


def _rows(tensor: Tensor, rows: int, k: int) -> Tensor:
    """A batch of ``rows`` rows (given as that many or as one) k times."""
    return tensor.expand(rows, *tensor.shape[1:]).repeat(k, *[1] * (tensor.ndim - 1))


def choose_evaluator(
    model: Any, width: int, options: dict[str, Any], clock: Callable[[], float]
) -> Evaluator:
    """Replicas where Draft Devices made some, else one batch; ``width`` 0: as many states as devices, or
    BATCH_WIDTH.

    Raises :class:`Undraftable` where neither is possible.
    """
    own = len(options.get(POST_CFG, []))
    told = options.get(DEVICES, {})
    width = width or told.get("width", 0)
    clones, pool = (options.get(key) for key in MULTIGPU)
    if clones and pool is not None and len(clones) > 1:
        return Replicas(model, width or len(clones), own, clones, pool)
    readers = [key for key in UNBATCHABLE if options.get(key)]
    if any(
        "hooks" in condition for conditions in model.inner_model.conds.values() for condition in conditions
    ):
        readers.append("hooks")
    if readers:
        raise Undraftable(
            f"there is one device, and {', '.join(readers)} may not understand a batch of several sigmas"
        )
    return Batch(model, width or BATCH_WIDTH, own, not told.get("batch", False), clock)


def predict_divided(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """D of rows [B, ...] that have nothing to do with one another, all at the first of sigma [B]: each device
    takes a part of them.
    """
    options = extra_args["model_options"]
    clones, pool = (options.get(key) for key in MULTIGPU)
    if not clones or pool is None or len(clones) < 2:
        return model(x, sigma, **extra_args)
    evaluate = Replicas(model, len(clones), len(options.get(POST_CFG, [])), clones, pool)
    parts = evaluate([(part, float(sigma[0])) for part in x.chunk(len(clones))], extra_args)
    return torch.cat([part[0] for part in parts])


def noise_of(function: Callable, x: Tensor, sigmas: Tensor, seed: int | None) -> NoiseSampler:
    """The noise that ``function`` would draw by itself."""
    if function in BROWNIAN:
        low, high = sigmas[sigmas > 0].min(), sigmas.max()
        return k_diffusion.BrownianTreeNoiseSampler(x, low, high, seed=seed, cpu=BROWNIAN[function])
    return k_diffusion.default_noise_sampler(x, seed=seed)


class DraftRefine(comfy.samplers.Sampler):
    """Any sampler of ComfyUI, its model's predictions drafted and refined in parallel."""

    def __init__(
        self,
        inner: comfy.samplers.Sampler,
        mode: Mode,
        width: int,
        tolerance: float,
        frozen: bool = False,
        on_report: Callable[[Report], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.inner, self.mode, self.width, self.tolerance, self.frozen = inner, mode, width, tolerance, frozen
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
            _tell(f"{type(inner).__name__} is not made of a sampler function")
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
            speculative = self._speculative(function, model, x, sigmas, extra_args, options)
        except Undraftable as why:
            _tell(str(why))
            return function(
                model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options
            )
        run, noise = bind(function, extra_args, options, disable), speculative.tape.reader()
        result = run(speculative, x, sigmas, callback, noise)
        report = speculative.report
        log.info(
            "DizzyDiff: %d steps (%d predictions) in %d rounds on %s, %d drafts dropped, largest deviation "
            "%.1e, %.2f s.",
            len(sigmas) - 1,
            len(speculative.calls),
            len(report.rounds),
            speculative.evaluate,
            report.rejections,
            report.largest_deviation,
            self._clock() - started,
        )
        if self.mode == "verified" and report.largest_deviation > ASTRAY * self.tolerance:
            log.warning(
                "DizzyDiff: this sampler arrived %.1e from a draft where %.1e was allowed: it steps "
                "otherwise than a dry run of it "
                "does, so the image is not the plain sampler's. Draw it with a width of 1.",
                report.largest_deviation,
                self.tolerance,
            )
        if self._on_report is not None:
            self._on_report(report)
        return result

    def _speculative(
        self,
        function: Callable,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        options: dict[str, Any],
    ) -> SpeculativeModel:
        if self.width == 1 or (self.mode == "verified" and self.tolerance == 0):
            raise Undraftable("a width of 1 or a tolerance of 0 leaves nothing to draft")
        if options.get("s_churn"):
            raise Undraftable("s_churn draws noise that a draft cannot draw again")
        evaluate = choose_evaluator(model, self.width, extra_args["model_options"], self._clock)
        run = bind(function, extra_args, options, disable=True)
        foretold = foretell(run, model, evaluate, sigmas, x.ndim)
        flow = isinstance(model.inner_model.inner_model.model_sampling, comfy.model_sampling.CONST)
        space = Space(flow_signal if flow else unit_signal)
        policy = Policy(self.mode, evaluate.width, self.tolerance)
        how = (
            Drafting.frozen(policy, space)
            if self.frozen
            else Drafting.extrapolated(policy, space, foretold.stochastic)
        )
        draw = options.get("noise_sampler") or noise_of(function, x, sigmas, extra_args.get("seed"))
        return SpeculativeModel(
            model, foretold, evaluate, evaluate.deliver, NoiseTape(draw, foretold.asks, sigmas), how
        )


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


def foretell(run: SamplerRun, model: Any, evaluate: Evaluator, sigmas: Tensor, ndim: int) -> Plan:
    """The :func:`~.calls.plan` of a sampler that gets its answers from ``evaluate``. Raises
    :class:`Undraftable`.
    """

    def stand_in(answer: Answer) -> StandIn:
        return StandIn(
            model,
            lambda x, sigma, **arguments: evaluate.deliver(answer(x, sigma), x, float(sigma[0]), arguments),
        )

    return plan(run, stand_in, sigmas, ndim)


def _tell(why: str) -> None:
    log.warning("DizzyDiff: this sampler runs as it is, undrafted: %s.", why)
