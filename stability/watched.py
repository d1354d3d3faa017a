# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model answered in pictures that were made anyway, as a profile: at no model call of its own.

A run of N steps predicts D_i at sigma_i. Between them D is a cubic spline in :func:`~.profile.coordinate`;
behind the last, which may be far from 0, it goes on as it went, by a straight line in sigma. dD/dx is not
measured: a grid is then made for what D does along the trajectories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from .profile import THOROUGH, Profile, coordinate, join, level_sigmas, reduced, response_levels, trajectories

MIN_STEPS = 12
"""Of a run that tells enough of what is between its steps."""
FEW, ENOUGH = 3, 10
"""Pictures from which sigmas are made, and after which no more is learned."""
MOST_NUMBERS = 65_536
"""Of a picture's latent that are kept: lengths are then right to about 0.5 %, whatever the size."""
PURE_NOISE = 0.75
"""The share of a model's highest sigma at which a run has to begin."""
SAME_STATE_RTOL = 0.02
"""Of a run's first state: less than what a step changes, more than rounding and core's sqrt(1 + sigma^2)."""


class Unwatchable(Exception):
    """Why a run that was sampled teaches nothing."""


@dataclass(frozen=True)
class Run:
    """A sampler's run through N noise levels with B pictures, of which d numbers each are kept."""

    sigmas: Tensor
    """[N], falling, above 0."""
    start: Tensor
    """x at the first of them [B, d]."""
    denoised: Tensor
    """D [N, B, d]."""


class Recorder:
    """A sampler's callback that keeps predictions on their device, and calls the one given."""

    def __init__(self, callback: Callable[..., Any], start: Tensor) -> None:
        """start [B, ...]: the state from which the sampler begins."""
        self._callback, self._start = callback, start
        self._kept = kept_numbers(start[0].numel())
        self._steps: list[int] = []
        self._denoised: list[Tensor] = []
        self._first_state: Tensor | None = None
        self._same_size = True

    def __call__(self, step: int, denoised: Tensor, x: Tensor, total: int) -> Any:
        self._same_size &= x.shape == denoised.shape == self._start.shape
        if self._same_size:
            self._see(step, denoised, x)
        return self._callback(step, denoised, x, total)

    def _see(self, step: int, denoised: Tensor, x: Tensor) -> None:
        if self._first_state is None:
            self._kept = self._kept.to(x.device)
            self._first_state = self._part(x)
        self._steps.append(step)
        self._denoised.append(self._part(denoised))

    def run(self, sigmas: Tensor) -> Run:
        """Over sigmas [N + 1]. Raises Unwatchable unless every step was reported once, after its first
        prediction, of latents of one size and with finite predictions.
        """
        if not self._same_size:
            raise Unwatchable("the latent changes its size while it is sampled")
        if self._first_state is None or self._steps != list(range(len(sigmas) - 1)):
            raise Unwatchable("the sampler does not report its steps one by one")
        self._kept = self._kept.to(self._start.device)
        start, reported = self._part(self._start).cpu(), self._first_state.cpu()
        if bool((reported - start).norm() > SAME_STATE_RTOL * start.norm()):
            raise Unwatchable("the sampler does not report the state from which it begins")
        denoised = torch.stack(self._denoised).cpu()
        if not bool(denoised.isfinite().all()):
            raise Unwatchable("the model's predictions are not finite")
        return Run(sigmas[:-1].cpu(), reported, denoised)

    def _part(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self._kept]


def kept_numbers(numel: int) -> Tensor:
    """Which numbers of a flat latent are kept: at most ``MOST_NUMBERS``, the same of each of a size."""
    if numel <= MOST_NUMBERS:
        return torch.arange(numel)
    return torch.randperm(numel, generator=torch.Generator().manual_seed(0))[:MOST_NUMBERS].sort().values


def why_not(sigmas: Tensor, sigma_max: float) -> str | None:
    """Why a run over sigmas [N + 1] tells too little of a model, if so."""
    steps = len(sigmas) - 1
    if steps < MIN_STEPS:
        return f"it has {steps} steps, and {MIN_STEPS} are the fewest that tell enough"
    if not (bool((sigmas.diff() < 0).all()) and float(sigmas[-1]) == 0):
        return "its sigmas do not fall to 0"
    return None if float(sigmas[0]) >= PURE_NOISE * sigma_max else "it does not begin at pure noise"


def profile_of(run: Run, sigma_max: float, sigma_min: float, flow: bool) -> Profile:
    """A probe a picture, at the levels of a thorough profile."""
    levels = level_sigmas(sigma_max, sigma_min, THOROUGH.levels, flow)
    answers = _predictions(run, levels, flow)
    following = iter(answers)
    states, _ = trajectories(lambda x, sigma: next(following), run.start, levels)
    states, denoised, _ = reduced(states, answers, 0)
    responses = states.new_zeros(len(states), len(response_levels(len(levels))), 0, 0)
    return Profile(levels, states, denoised, responses, flow, 0)


def _predictions(run: Run, levels: Tensor, flow: bool) -> Tensor:
    """D [L, B, d] at falling levels [L], from that at the run's."""
    sigmas, D = run.sigmas.cpu().double(), run.denoised.cpu().double()
    own, wanted = (coordinate(each, flow).numpy() for each in (sigmas, levels))
    spline = CubicSpline(-own, np.eye(len(own)))(-np.clip(wanted, own[-1], own[0]))
    between = torch.einsum("ln,npd->lpd", torch.from_numpy(spline), D)
    slope = (D[-1] - D[-2]) / (sigmas[-1] - sigmas[-2])
    return between + slope * (levels - sigmas[-1]).clamp(max=0)[:, None, None]


def added(known: Profile | None, more: Profile) -> Profile:
    """The first ``ENOUGH`` pictures of both."""
    return first_pictures(more if known is None else join([known, more]), ENOUGH)


def first_pictures(profile: Profile, count: int) -> Profile:
    kept = {name: getattr(profile, name)[:count] for name in ("states", "denoised", "responses")}
    return replace(profile, **kept)


def learned_from(profile: Profile) -> Profile | None:
    """The pictures that sigmas are made from: ``FEW`` until there are ``ENOUGH``, so that they change once.
    None of fewer.
    """
    pictures = len(profile.states)
    if pictures < FEW:
        return None
    return first_pictures(profile, ENOUGH if pictures >= ENOUGH else FEW)
