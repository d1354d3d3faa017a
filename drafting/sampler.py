# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine as a ComfyUI SAMPLER: any sampler function, its model's predictions drafted and refined."""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..common.alpha import alpha_of
from ..common.dry_run import NoiseSampler, Predict, Untraceable
from ..common.messages import Say, both, inform, warn
from ..common.sampler_trace import Trace, trace
from .backends import choose_backend
from .backends.base import Backend, Request
from .backends.graph import CLONES, MULTIGPU
from .cluster.session import SERVING
from .devices import DEVICES
from .errors import MainDeviceOnly, Undraftable
from .interpolation import in_between
from .noise import NoiseTape
from .own_noise import own_noise
from .policies import Mode, Policy
from .predictors import DRAFTS, DraftsName
from .report import Report
from .space import Space
from .speculation import SpeculativeModel, StandIn
from .window import Drafting

ROUNDING = 1.05
"""Used drafts this many tolerances off are no rounding any more."""
ALONE = "there is one device (Draft Devices can name several, or a batch), which skips model calls only with"


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


class DraftRefine(comfy.samplers.KSAMPLER):
    """Any sampler of ComfyUI, its model's predictions drafted and refined in parallel.

    It has a ``sampler_function`` as every KSAMPLER, for the nodes that wrap one.
    """

    def __init__(
        self,
        inner: comfy.samplers.Sampler,
        settings: Settings,
        *,
        on_report: Callable[[Report], None] | None = None,
        on_message: Say | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """on_report: gets what happened in a drafted run; on_message: every sentence for the user."""
        self.inner: comfy.samplers.Sampler = inner.inner if isinstance(inner, DraftRefine) else inner
        self.settings, self._on_report, self._clock = settings, on_report, clock
        self._warn, self._inform = both(warn, on_message), both(inform, on_message)
        options = {name: getattr(self.inner, name, {}) for name in ("extra_options", "inpaint_options")}
        super().__init__(self._run, **options)

    def sample(self, *arguments: Any, **named: Any) -> Tensor:
        if isinstance(self.inner, comfy.samplers.KSAMPLER):
            return super().sample(*arguments, **named)
        self._warn_undrafted(f"{type(self.inner).__name__} is not made of a sampler function")
        return self.inner.sample(*arguments, **named)

    def _run(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Any = None,
        disable: bool | None = None,
        **options: Any,
    ) -> Tensor:
        call = SamplerCall(self.inner.sampler_function, extra_args or {}, options, disable)
        session = SERVING.get()
        if session is not None and "cluster" in call.model_options.get(DEVICES, {}):
            return session.serve(model, call.extra_args).to(x)
        try:
            return self._drafted(model, x, sigmas, callback, call)
        except (Undraftable, Untraceable) as why:
            self._warn_undrafted(str(why))
            if isinstance(why, MainDeviceOnly):
                call = call.on_main_device
        return call(model, x, sigmas, callback)

    def _drafted(self, model: Any, x: Tensor, sigmas: Tensor, callback: Any, call: SamplerCall) -> Tensor:
        """Raises :class:`Undraftable` or :class:`Untraceable`, x and sigmas being as they were."""
        started, settings = self._clock(), self.settings
        if settings.nothing_to_draft:
            raise Undraftable("one prediction per round, or a tolerance of 0, leaves nothing to draft")
        if call.options.get("s_churn"):
            raise Undraftable("s_churn draws noise that a draft cannot draw again")
        backend = choose_backend(
            Request(
                model,
                call.model_options,
                settings.width,
                verified=settings.mode == "verified",
                warn=self._warn,
                inform=self._inform,
                clock=self._clock,
                shapes=shapes_of(getattr(model, "inner_model", None), x),
                mask=call.extra_args.get("denoise_mask"),
            )
        )
        result = None
        try:
            result, report = self._sample(backend, model, x, sigmas, callback, call)
        finally:
            backend.close(result)
        report.seconds = self._clock() - started
        self._tell(report, len(sigmas) - 1, f"{backend}")
        return result

    def _sample(
        self, backend: Backend, model: Any, x: Tensor, sigmas: Tensor, callback: Any, call: SamplerCall
    ) -> tuple[Tensor, Report]:
        """As :meth:`_drafted`, by a backend."""
        settings = self.settings
        predicted = functools.partial(stand_in, model, backend)
        found = trace(call.silent, predicted, sigmas, x.ndim)
        policy = Policy(settings.mode, len(found.calls), settings.tolerance)
        space = Space(alpha_of(model_sampling_of(model, call.model_options)))
        noises = self._noises(call, predicted, found, x, sigmas)
        speculative = SpeculativeModel(
            model,
            found,
            evaluate=backend,
            deliver=backend.deliver,
            noises=noises,
            drafting=Drafting(
                policy,
                DRAFTS[settings.drafts](found.stochastic),
                space,
                parts=parts_of(backend.request.shapes),
                skippable=self._skippable(backend, found),
            ),
            shape=x.shape,
        )
        noise = noises.reader() if found.stochastic else None
        result = call(speculative, x.clone(), sigmas.clone(), callback, noise)
        report = speculative.report
        report.speeds, (report.fastest, report.call_s) = backend.speeds, backend.fastest
        return result, report

    def _skippable(self, backend: Backend, found: Trace) -> frozenset[int]:
        """Calls that may be interpolated. Raises :class:`Undraftable` where there are none and a round
        evaluates one state, so that nothing would be gained.
        """
        sigmas = [call.sigma for call in found.calls]
        between = [n for n in range(len(sigmas)) if in_between(found.calls, n)]
        missing = ""
        if self.settings.mode != "verified" or self.settings.drafts != "extrapolated":
            missing = "mode verified and drafts extrapolated"
        elif found.stochastic or not between:
            missing = "a sampler that adds no noise and calls the model once a step"
        elif sigmas != sorted(sigmas, reverse=not found.rising):
            missing = "sigmas that only fall, or only rise"
        if missing and backend.width == 1:
            raise Undraftable(f"{ALONE} {missing}")
        if missing:
            return frozenset()
        return frozenset(n for n in between if backend.may_skip(*sigmas[n - 1 : n + 2]))

    def _noises(
        self,
        call: SamplerCall,
        predicted: Callable[[Predict], StandIn],
        found: Trace,
        x: Tensor,
        sigmas: Tensor,
    ) -> NoiseTape:
        def run(predict: Predict, x: Tensor, sigmas: Tensor) -> Tensor:
            return call.silent(predicted(predict), x, sigmas, None)

        draw = call.options.get("noise_sampler") or own_noise(
            call.function, run, found, x=x, sigmas=sigmas, seed=call.extra_args.get("seed")
        )
        return NoiseTape(draw, found.noise_sigmas, sigmas)

    def _tell(self, report: Report, steps: int, where: str) -> None:
        if report.times_as_fast:
            gain = f"{report.times_as_fast:.2g} times as fast as {report.fastest} alone"
            where = f"{where} ({gain}, estimated from its calls)"
        skipped = f", {report.interpolations} model calls skipped" if report.interpolations else ""
        self._inform(
            f"{steps} steps ({report.calls} predictions) in {len(report.rounds)} rounds on {where}{skipped}, "
            f"{report.rejections} drafts dropped, largest deviation {report.largest_deviation:.1e}, "
            f"{report.seconds:.2f} s."
        )
        settings = self.settings
        if settings.mode == "verified" and report.largest_deviation > ROUNDING * settings.tolerance:
            self._warn(
                f"this sampler arrived {report.largest_deviation:.1e} from a draft where "
                f"{settings.tolerance:.1e} was allowed: it steps otherwise than a dry run of it does, so the "
                "image is not the plain sampler's. Draw it with predictions_per_round at 1."
            )
        if self._on_report is not None:
            self._on_report(report)

    def _warn_undrafted(self, why: str) -> None:
        self._warn(f"the sampler runs plainly, undrafted: {why}.")


@dataclass(frozen=True)
class SamplerCall:
    """A sampler function with all that it is called with but model, state, sigmas, callback and noise."""

    function: Callable[..., Tensor]
    extra_args: dict[str, Any]
    options: dict[str, Any]
    disable: bool | None

    @property
    def model_options(self) -> dict[str, Any]:
        return self.extra_args.get("model_options", {})

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, callback: Any, noise: NoiseSampler | None = None
    ) -> Tensor:
        """``noise``: in place of the function's own, where it takes any."""
        own = noise is None or "noise_sampler" not in inspect.signature(self.function).parameters
        options = self.options if own else {**self.options, "noise_sampler": noise}
        # Some samplers write hooks of their own into them.
        extra_args = dict(self.extra_args)
        return self.function(
            model, x, sigmas, extra_args=extra_args, callback=callback, disable=self.disable, **options
        )

    @property
    def silent(self) -> SamplerCall:
        """The same without a progress bar."""
        return replace(self, disable=True)

    @property
    def on_main_device(self) -> SamplerCall:
        """The same without core's division of cond and uncond over several devices."""
        options = self.extra_args["model_options"]
        alone = {key: value for key, value in options.items() if key not in MULTIGPU}
        return replace(self, extra_args={**self.extra_args, "model_options": alone})


def stand_in(model: Any, backend: Backend, predict: Predict) -> StandIn:
    """A model whose predictions [2, ...] reach the sampler as the backend's do."""

    def deliver(x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
        return backend.deliver(predict(x, sigma), x, float(sigma[0]), arguments)

    return StandIn(model, deliver)


def model_sampling_of(model: Any, options: dict[str, Any]) -> Any:
    """The model_sampling behind a sampler's model, or behind its replicas where another node wrapped it.

    Raises :class:`Undraftable`.
    """
    base = getattr(getattr(model, "inner_model", None), "inner_model", None)
    for clone in options.get(CLONES, {}).values():
        base = base or getattr(clone, "model", None)
    if (model_sampling := getattr(base, "model_sampling", None)) is None:
        raise Undraftable("another node hides the model that it samples")
    return model_sampling


def shapes_of(guider: Any, x: Tensor) -> tuple[torch.Size, ...]:
    """Of the parts that a latent x [B, 1, N] is packed from; that of x where it has one part."""
    for conditions in getattr(guider, "conds", {}).values():
        for condition in conditions:
            told = condition.get("model_conds", {}).get("latent_shapes")
            shapes = () if told is None else tuple(told.cond)
            if sum(parts_of(shapes)) == x.shape[-1]:
                return shapes
    return (x.shape,)


def parts_of(shapes: Sequence[torch.Size]) -> tuple[int, ...]:
    """Lengths of the parts in a row of a packed latent; () for a latent of one part."""
    return tuple(math.prod(shape[1:]) for shape in shapes) if len(shapes) > 1 else ()
