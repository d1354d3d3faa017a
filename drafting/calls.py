# SPDX-License-Identifier: GPL-3.0-or-later
"""The questions a sampler will ask its model, known before it asks them: one dry run on a single number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import Undraftable

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""noise(sigma, sigma_next): a sample of the state's shape."""
Callback = Callable[[dict[str, Any]], None]


class SamplerRun(Protocol):
    """A k-diffusion sampler function with everything bound but what a draft changes."""

    def __call__(self, model: Any, x: Tensor, sigmas: Tensor, callback: Callback | None, noise: NoiseSampler, /) -> Tensor: ...


@dataclass(frozen=True)
class Call:
    """One question D(x, sigma) of a sampler."""

    step: int
    """The sampling step that asks."""
    sigma: float
    noises: int
    """Noises drawn before it."""
    gain: float
    """d x / d x_0 of its state with all predictions held fixed: how an offset of the state travels."""


def _dry_run(run: SamplerRun, stand_in: Callable[[Callable], Any], sigmas: Tensor, ndim: int, answer: float) -> tuple[Call, ...]:
    asked: list[Call] = []
    first_of_step: dict[int, int] = {}
    noises = 0

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(Call(0, float(sigma[0]), noises, float(x)))
        return answer * x

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        nonlocal noises
        noises += 1
        return torch.zeros([1] * ndim, dtype=sigmas.dtype)

    def callback(report: dict[str, Any]) -> None:
        first_of_step[int(report["i"])] = len(asked) - 1

    run(stand_in(model), torch.ones([1] * ndim, dtype=sigmas.dtype), sigmas.cpu().clone(), callback, noise)
    if sorted(first_of_step) != list(range(len(sigmas) - 1)) or first_of_step.get(0) != 0:
        raise Undraftable("it does not report its steps one by one")
    starts = sorted(first_of_step.items())
    steps = [max(step for step, first in starts if first <= index) for index in range(len(asked))]
    return tuple(Call(step, call.sigma, call.noises, call.gain) for step, call in zip(steps, asked, strict=True))


def plan(run: SamplerRun, stand_in: Callable[[Callable], Any], sigmas: Tensor, ndim: int) -> tuple[Call, ...]:
    """All questions of a run over ``sigmas`` [steps + 1] for states of ``ndim`` dimensions.

    ``stand_in(f)`` makes a model that the sampler accepts from f(x, sigma) -> D. Raises :class:`Undraftable` for samplers
    that a draft cannot run ahead: where they ask depends on what they were answered (adaptive steps), or they do not walk
    ``sigmas`` step by step, so that they cannot begin in the middle.
    """
    middle = (len(sigmas) - 1) // 2
    with torch.random.fork_rng(devices=[]):
        calls = _dry_run(run, stand_in, sigmas, ndim, 0.0)
        again = _dry_run(run, stand_in, sigmas, ndim, 0.5)
        tail = _dry_run(run, stand_in, sigmas[middle:], ndim, 0.0)
    if [(call.step, call.sigma, call.noises) for call in calls] != [(call.step, call.sigma, call.noises) for call in again]:
        raise Undraftable("where it asks depends on what it was answered")
    if [call.sigma for call in calls if call.step >= middle] != [call.sigma for call in tail]:
        raise Undraftable("it cannot begin in the middle of a schedule")
    if not all(math.isfinite(call.sigma) and call.sigma > 0 for call in calls):
        raise Undraftable("it asks at sigmas that are not above zero")
    return calls
