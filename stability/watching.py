# SPDX-License-Identifier: GPL-3.0-or-later
"""A MODEL whose pictures are watched as they are sampled, and then sampled on sigmas learned from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..common.alpha import is_flow
from ..common.dry_run import Untraceable
from ..common.messages import Say
from .grids import MAX_REFINED_STEPS, gains, hedged, make_grid
from .guiders import guider_identity
from .identity import Unreadable, digest_of
from .linearized import linearize
from .measured import resolution_class, scheduled_grids
from .profile import Profile
from .samplers import solver_of
from .store import Store
from .watched import ENOUGH, FEW, Recorder, Run, Unwatchable, added, learned_from, profile_of, why_not

KEY = "dizzydiff_watch"


def watched(model: Any, watcher: Watcher) -> Any:
    """A copy of the MODEL that is watched wherever it is sampled, by this watcher alone."""
    model = unwatched(model)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, watcher)
    return model


def unwatched(model: Any) -> Any:
    """A copy of the MODEL without a watcher."""
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    if not model.wrappers.get(WrappersMP.OUTER_SAMPLE, True):
        del model.wrappers[WrappersMP.OUTER_SAMPLE]  # a model that never was watched has none either
    return model


def unwatched_guider(guider: Any) -> Any:
    """A copy of a GUIDER, as it is or while it samples, whose MODEL has no watcher."""
    if not hasattr(guider, "__dict__"):
        return guider
    guider = copy.copy(guider)
    guider.model_patcher = unwatched(guider.model_patcher)
    guider.model_options = _without_watcher(getattr(guider, "model_options", {}))
    return guider


@dataclass(eq=False)
class Watcher:
    """An OUTER_SAMPLE wrapper. What it learns is kept in the store, for each model, guidance and size."""

    store: Store
    replaces: bool
    """Whether runs get the sigmas that were learned."""
    anew: bool
    """Whether what the store holds at first is forgotten."""
    say: Say
    grids: dict[Any, Tensor | None] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    """Keys of which something was learned since."""

    def __call__(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., Any] | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Runs that nobody follows by a callback, as measurements are, pass as they are."""

        def sample(sigmas: Tensor, callback: Callable[..., Any] | None) -> Any:
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *rest, **options)

        if callback is None:
            return sample(sigmas, callback)
        guider = executor.class_obj
        sampling = guider.model_patcher.get_model_object("model_sampling")
        shapes = options.get("latent_shapes") or [noise.shape]
        reason = _why_not(sigmas, sampling, shapes, denoise_mask)
        if reason is not None:
            self.say(f"Not watched: {reason}.")
            return sample(sigmas, callback)
        try:
            key = _key(guider, noise.shape)
        except Unreadable as why:
            self.say(f"Not watched: this model cannot be told apart from others: {why}.")
            return sample(sigmas, callback)
        known = self._known(key)
        sigmas = self._learned(key, known, sampler, sampling, sigmas)
        if known is not None and len(known.states) >= ENOUGH:
            return sample(sigmas, callback)
        recorder = Recorder(callback, sigmas[0] * noise)
        result = sample(sigmas, recorder)
        try:
            self._learn(key, known, recorder.run(sigmas), sampling)
        except Unwatchable as why:
            self.say(f"Not watched: {why}.")
        return result

    def _known(self, key: str) -> Profile | None:
        return None if self.anew and key not in self.begun else self.store.load(key)

    def _learn(self, key: str, known: Profile | None, run: Run, sampling: Any) -> None:
        new = profile_of(run, float(sampling.sigma_max), float(sampling.sigma_min), is_flow(sampling))
        profile = added(known, new)
        self.store.save(key, profile)
        self.begun.add(key)
        pictures = len(profile.states)
        wanted = next((count for count in (FEW, ENOUGH) if pictures < count), None)
        then = "no more are needed" if wanted is None else f"sigmas are learned from {wanted}"
        self.say(f"Watched: {pictures} of {ENOUGH} pictures of this model, guidance and size; {then}.")

    def _learned(
        self, key: str, known: Profile | None, sampler: Any, sampling: Any, sigmas: Tensor
    ) -> Tensor:
        """Those learned for the sampler, as many; those given where there are none, or none are wanted."""
        learned = None if known is None or not self.replaces else learned_from(known)
        steps = len(sigmas) - 1
        if learned is None:
            return sigmas
        if steps > MAX_REFINED_STEPS:
            self.say(
                f"The sampler keeps its sigmas: none are learned for more than {MAX_REFINED_STEPS} steps."
            )
            return sigmas
        pictures = len(learned.states)
        try:
            place = (key, pictures, digest_of(sampler), tuple(sigmas.tolist()))
            if place not in self.grids:
                self.grids[place] = _gaining(learned, sampler, sampling, sigmas)
        except (Unreadable, Untraceable) as why:
            self.say(f"The sampler keeps its sigmas: {why}.")
            return sigmas
        grid = self.grids[place]
        if grid is None:
            self.say(f"The sampler keeps its sigmas: by {pictures} pictures nothing is gained on them.")
            return sigmas
        self.say(f"Sampled on sigmas learned from {pictures} pictures, {steps} steps.")
        return grid.to(sigmas)


def _gaining(learned: Profile, sampler: Any, sampling: Any, sigmas: Tensor) -> Tensor | None:
    """As many sigmas, on which the sampler strays less than on those given; None where it does not. Raises
    Untraceable.
    """
    model, solver, given = linearize(learned), solver_of(sampler, sampling), sigmas.cpu().double()
    steps = len(sigmas) - 1
    grid = make_grid(model, steps, solver, [given, *scheduled_grids(sampling, steps).values()])
    return hedged(grid, given, is_flow(sampling)) if gains(model, grid, given, solver) else None


def _why_not(sigmas: Tensor, sampling: Any, shapes: list[Any], denoise_mask: Tensor | None) -> str | None:
    if len(shapes) > 1:
        return "the model samples several latents at once"
    if denoise_mask is not None:
        return "only a part of the picture is sampled"
    return why_not(sigmas, float(sampling.sigma_max))


def _key(guider: Any, shape: torch.Size) -> str:
    """Of what a run tells: the guider without the watcher, and the resolution class. Raises Unreadable."""
    return repr(("watched", guider_identity(unwatched_guider(guider)), resolution_class(shape)))


def _without_watcher(options: dict[str, Any]) -> dict[str, Any]:
    """Core copies a MODEL's wrappers to several places among the options of a guider that samples."""
    return {
        name: _without_watcher(value) if isinstance(value, dict) else value
        for name, value in options.items()
        if name != KEY
    }
