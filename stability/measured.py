# SPDX-License-Identifier: GPL-3.0-or-later
"""A model measured once, and the SIGMAS made for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..common.alpha import is_flow
from ..common.dry_run import Untraceable
from ..common.messages import Say, warn
from .errors import CannotMeasure
from .grids import blend, for_denoise, gains, hedged, make_grid
from .guiders import guider_identity
from .identity import Unreadable, conditioning_digest, identity
from .linearized import LinearizedModel, linearize
from .profile import Effort, Profile, Progress
from .samplers import solver_of
from .solvers import Solver
from .store import Store
from .subject import Subject, lacks_memory, measure_model

log = logging.getLogger("dizzydiff")

FALLBACK = "simple"
"""Core's scheduler where nothing could be measured."""
SCHEDULER = "dizzydiff"
"""The pack's own among ComfyUI's (``scheduler``)."""


@dataclass(frozen=True)
class Measured:
    """A model's noise levels, and what was measured of it: None where measuring failed.

    origin: in a sentence, when it was measured and by how many model calls, or why not.
    """

    sampling: Any
    linearized: LinearizedModel | None
    origin: str

    def sigmas(
        self, steps: int, denoise: float, solver: Solver, share: float = 0.0, *, say: Say = warn
    ) -> Tensor:
        """SIGMAS [steps + 1] in fp32 for a solver; ``share`` in [0, 1] of core's simple grid
        is mixed in. Core's simple ones, with a word, where nothing is gained on them.
        """
        return for_denoise(lambda n: self._whole(n, solver, share, say), steps, denoise).float()

    def sigmas_of(
        self, sampler: Any, steps: int, denoise: float, share: float = 0.0, *, say: Say = warn
    ) -> Tensor:
        """SIGMAS for a SAMPLER: core's simple ones, with a word, where none can be made for it."""
        try:
            return self.sigmas(steps, denoise, solver_of(sampler, self.sampling), share, say=say)
        except Untraceable as why:
            say(f"No stability grid for this sampler: {why}. Core's {FALLBACK} sigmas are used.")
            return for_denoise(lambda n: fallback_grid(self.sampling, n), steps, denoise).float()

    def foretelling_solver(self, solver: Solver, sampler: Any, say: Say) -> Solver | None:
        """The solver that errors are foretold for: that of a SAMPLER, where one is given. None, with a word,
        where nothing can be foretold.
        """
        if self.linearized is None:
            say(f"No error is foretold. {self.origin}")
            return None
        if sampler is None:
            return solver
        try:
            return solver_of(sampler, self.sampling)
        except Untraceable as why:
            say(f"No error is foretold for this sampler: {why}.")
            return None

    def _whole(self, steps: int, solver: Solver, share: float, say: Say) -> Tensor:
        simple = fallback_grid(self.sampling, steps)
        if self.linearized is None:
            warn(self.origin)
            return simple
        others = scheduled_grids(self.sampling, steps).values()
        grid = make_grid(self.linearized, steps, solver, list(others))
        if not gains(self.linearized, grid, simple, solver):
            say(f"Nothing is gained on core's {FALLBACK} sigmas for this model and solver: they are used.")
            return simple
        return blend(hedged(grid, simple, is_flow(self.sampling)), simple, share)


def fallback_grid(sampling: Any, steps: int) -> Tensor:
    """Core's simple sigmas [steps + 1] in float64."""
    return comfy.samplers.simple_scheduler(sampling, steps).cpu().double()


def scheduled_grids(sampling: Any, steps: int) -> dict[str, Tensor]:
    """What ComfyUI's schedulers give for so many steps, those of other packs included. Those that raise are
    left out, with a word in the log.
    """
    grids, failed = {}, []
    others = [name for name in comfy.samplers.SCHEDULER_NAMES if name != SCHEDULER]
    names = [name for name in others if steps > 1 or name == FALLBACK]
    for name in names:  # kl_optimal and linear_quadratic need more than one step
        try:
            grids[name] = torch.as_tensor(comfy.samplers.calculate_sigmas(sampling, name, steps))
        except Exception as error:  # anybody's code
            failed.append(f"{name} ({type(error).__name__}: {error})")
    if failed:
        log.warning("DizzyDiff: schedulers that fail on this model are left out: %s.", ", ".join(failed))
    return grids


def measured_once(
    subject: Subject, effort: Effort, store: Store, progress: Progress, *, again: bool = False
) -> Measured:
    """From the store, or measured now and stored; nothing linearised where the model cannot be measured.
    again: measured now in any case, and stored in place of what was.

    Interruptions pass through, and so does a lack of memory for one row, in which nothing could be sampled
    either: ComfyUI says so, and frees what it can.
    """
    try:
        profile, origin = _stored_profile(subject, effort, store, progress, again)
        return Measured(subject.sampling, linearize(profile), origin)
    except (CannotMeasure, RuntimeError, MemoryError) as error:
        if lacks_memory(error):
            raise
        origin = f"Not measured: {error} Core's {FALLBACK} sigmas are used."
        return Measured(subject.sampling, None, origin)


def _stored_profile(
    subject: Subject, effort: Effort, store: Store, progress: Progress, again: bool
) -> tuple[Profile, str]:
    """And in a sentence where it is from."""
    try:
        key = key_of(subject, effort)
    except Unreadable as why:
        log.warning("%s: this model cannot be told apart from others, and is measured each time.", why)
        profile = measure_model(subject, effort, progress)
        return profile, f"Measured now by {profile.calls} model calls, and not kept: {why}."
    stored = None if again else store.load(key)
    if stored is not None:
        return stored, f"Measured on {store.date(key)} by {stored.calls} model calls, and read."
    profile = measure_model(subject, effort, progress)
    store.save(key, profile)
    return profile, f"Measured now by {profile.calls} model calls, and kept."


def key_of(subject: Subject, effort: Effort) -> str:
    """The model's identity, CFG, how the conditionings change it, resolution class, seed and effort; not the
    prompts. A profile serves every solver, so none is named. Raises Unreadable.
    """
    resolution = resolution_class(subject.latent["samples"].shape)
    conditioning = [conditioning_digest(each) for each in (subject.positive, subject.negative)]
    model = identity(subject.model) if subject.guider is None else guider_identity(subject.guider)
    return repr(("profile", model, conditioning, round(subject.cfg, 4), resolution, effort, subject.seed))


def resolution_class(shape: Sequence[int]) -> list[int]:
    """Of a latent [B, C, ...]: channels, and frames and size to the nearest factor of sqrt(2)."""
    return [
        shape[1],
        *(round(2 * math.log2(max(1, n))) for n in shape[2:-2]),
        round(2 * math.log2(shape[-2] * shape[-1])),
    ]
