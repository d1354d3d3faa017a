# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backend is: predictions of the guider in the graph, at several states."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...common.messages import Say, inform, warn
from ..devices import DEVICES
from ..errors import MainDeviceOnly, Undraftable
from ..speculation import Arrival, State
from ..verdicts import Verdict, Verdicts
from .graph import MULTIGPU, POST_CFG, Watch, identity, watch
from .random_state import put_back, random_states, same_states


@dataclass(frozen=True)
class Request:
    """What is to be evaluated: the model of a sampler, and the options and conditioning it is called with.

    model: core's KSamplerX0Inpaint, or what another node wrapped around it. width: states a round, or 0: what
    Draft Devices says, or else what the backend thinks best. shapes: of the latent's parts [B, ...], where a
    sampler node samples it: workers that run its graph come to the same model then. mask: what the model is
    called with as ``denoise_mask``, shaped as the state.
    """

    model: Any
    options: dict[str, Any]
    width: int = 0
    verified: bool = False
    """Whether drafts are dropped where they are too far off."""
    warn: Say = warn
    inform: Say = inform
    clock: Callable[[], float] = time.perf_counter
    shapes: Sequence[torch.Size] = ()
    mask: Tensor | None = None

    @property
    def wish(self) -> dict[str, Any]:
        """What Draft Devices was told."""
        return self.options.get(DEVICES, {})

    @property
    def states_a_round(self) -> int:
        return self.width or self.wish.get("width", 0)

    @property
    def guider(self) -> Any:
        """None where another node wrapped the model so that it cannot be seen."""
        return getattr(self.model, "inner_model", None)

    @property
    def verdicts(self) -> Verdicts:
        return self.wish.get("verdicts") or Verdicts()

    @property
    def post_cfg_hooks(self) -> int:
        """Of the graph. A ``*_cfg_pp`` sampler adds one of its own."""
        return len(self.options.get(POST_CFG, []))


class Backend:
    """Predictions of a sampler's model (masks, then the guider) at several states, one after the other.

    Whatever is in the graph is watched while it is evaluated: what keeps something from one model call to the
    next is sampled in the sampler's own order, one state a call.
    """

    places = 1
    """Devices that evaluate at the same time."""
    evaluated_on: Sequence[str] = ()
    """The device of each state of the last round, where there are several."""
    speeds: Mapping[str, float] = {}
    """Of devices, by name, in classes relative to the fastest; those that take no part included."""
    fastest: tuple[str, float] = "", 0.0
    """Its name, and the seconds that it takes for a call, where they are known."""

    def __init__(self, request: Request, width: int) -> None:
        self.request, self.model, self.width = request, request.model, width
        self._graph_hooks = request.post_cfg_hooks
        self._watch: Watch | None = None
        self._drafted = self._given_up = False
        self._last: tuple[State, Tensor] | None = None

    @classmethod
    def refusal(cls, request: Request) -> Undraftable | None:
        """Why this backend cannot evaluate what is asked for; None where it can."""
        raise NotImplementedError

    @classmethod
    def make(cls, request: Request) -> Backend:
        raise NotImplementedError

    def may_skip(self, before: float, sigma: float, behind: float) -> bool:
        """Whether a call at sigma may be interpolated between the calls before and behind it."""
        return False

    @property
    def capacity(self) -> int:
        """States the next round may hold. One while the graph is still settling into the picture."""
        return self.width if self.drafting else 1

    @property
    def drafting(self) -> bool:
        """Whether the next round may hold drafts. Not while the graph is still settling, nor once
        drafts are given up.
        """
        settling = self._watch is not None and self._watch.settling
        return not self._given_up and not (settling and not self._drafted)

    def __call__(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        """Predictions at the states, or at the first few of them.

        Raises :class:`Undraftable` where drafts turn out to change the picture; it is to be sampled anew.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self._watch is None:
            self._consult(states[0].x)
            options = arguments["model_options"]
            self._device = states[0].x.device
            self._random = random_states(self._device)
            self._watch = watch(self.model, options, options.get(POST_CFG, [])[self._graph_hooks :])
        if not self._drafted and any(state.given is None for state in states):
            self._before_drafts(arguments)
            states = states[: self.width]
        random = random_states(self._device)
        predictions = self.evaluate(states, arguments)
        if not self._given_up:
            self._look(self._watch, drew=not same_states(random, random_states(self._device)))
        if not self._drafted:
            self._last = states[0], predictions[0]
        return predictions

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        return [self.predict(self.model, state.x, state.sigmas, arguments) for state in states]

    def prepare(self, arguments: dict[str, Any]) -> Sequence[int]:
        """See :class:`~..speculation.Evaluate`, as for the next three: here there are no far drafts."""
        return ()

    def begin(self, drafts: Mapping[int, State], arguments: dict[str, Any]) -> None:
        assert not drafts

    def due(self) -> Mapping[int, State]:
        return {}

    def arrived(self) -> Mapping[int, Arrival]:
        return {}

    def _before_drafts(self, arguments: dict[str, Any]) -> None:
        if not self._drafted:
            self._drafted = True
            self.check(arguments)

    def check(self, arguments: dict[str, Any]) -> None:
        """Whether the graph answers here as it does alone. Called before the first draft is evaluated."""

    def predict(
        self, model: Any, x: Tensor, sigma: Tensor, arguments: dict[str, Any], **replaced: Any
    ) -> Tensor:
        """The guider's prediction [P, ...]; ``replaced``: model options.

        A ``*_cfg_pp`` sampler reads uncond through a post-cfg hook of its own. Where it added one (P = 2),
        the hook is left out here, uncond is kept beside the prediction, and :meth:`deliver` calls the hook
        when the sampler gets its prediction.
        """
        given = arguments["model_options"]
        options = comfy.model_patcher.create_model_options_clone(given) if replaced else dict(given)
        for key in MULTIGPU:
            options.pop(key, None)
        options.update(replaced)
        uncond: list[Tensor] = []

        def keep(report: dict[str, Any]) -> Tensor:
            uncond.append(report["uncond_denoised"])
            return report["denoised"]

        if own_hook := len(options.get(POST_CFG, [])) > self._graph_hooks:
            options[POST_CFG] = [*options[POST_CFG][: self._graph_hooks], keep]
        before = dict(options)
        denoised = model(x, sigma, **{**arguments, "model_options": options})
        if not replaced:
            # What a patch keeps in the options, it finds there at the next call.
            given.update({key: value for key, value in options.items() if before.get(key) is not value})
        return torch.stack([denoised, uncond[-1]]) if own_hook else denoised[None]

    def deliver(self, prediction: Tensor, x: Tensor, sigma: float, arguments: dict[str, Any]) -> Tensor:
        """What the sampler gets: the denoised prediction, after its own post-cfg hooks have seen uncond."""
        denoised = prediction[0]
        for hook in arguments.get("model_options", {}).get(POST_CFG, [])[self._graph_hooks :]:
            denoised = hook({"denoised": denoised, "uncond_denoised": prediction[-1], "input": x})
        return denoised

    def close(self, result: Tensor | None) -> None:
        """The sampler is through, with its result, or without one where it was given up: wait for whatever is
        still being evaluated.
        """

    def _consult(self, x: Tensor) -> None:
        """Refuse what was refused before, before anything is evaluated."""
        self._key, self._subject = identity(type(self), self.model, self.request.options, x)
        self._verdict = self.request.verdicts.get(self._key)
        if self._verdict is not None and self._verdict.reason:
            raise self._verdict.kind(self._verdict.reason)

    @property
    def checked(self) -> bool:
        """Whether this graph passed before, with this latent."""
        return self._verdict is not None and self._verdict.passed

    def found(self, verdict: Verdict) -> None:
        """Keep what was found for the pictures to come."""
        self._verdict = verdict
        self.request.verdicts.add(self._key, verdict, self._subject)

    def passed(self) -> None:
        self.found(Verdict())

    def refuse(self, reason: str, kind: type[Undraftable] = Undraftable) -> Undraftable:
        """The reason, kept for the pictures to come."""
        self.request.verdicts.add(self._key, Verdict(reason, kind), self._subject)
        return kind(reason)

    def _look(self, watch: Watch, drew: bool) -> None:
        """Stand aside for whoever keeps something from one model call to the next.

        drew: whether the model call drew from torch's own generators, which remember for it.
        """
        try:
            keeper = watch.look() or ("a patch that draws random numbers" if drew else None)
        except Exception as error:
            raise self.refuse(
                f"what its patches remember cannot be looked at ({type(error).__name__}: {error})",
                MainDeviceOnly,
            ) from error
        if keeper is None:
            return
        reason = f"{keeper} remembers earlier model calls, which must come one by one and in order"
        if self._drafted:
            watch.restore()
            put_back(self._random, self._device)
            raise self.refuse(reason, MainDeviceOnly)
        # So far the model was called as without drafts: it can go on from here.
        self.refuse(reason, MainDeviceOnly)
        self._given_up = True
        self.request.warn(f"from here on the sampler runs plainly, undrafted: {reason}.")
