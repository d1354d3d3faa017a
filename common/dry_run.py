# SPDX-License-Identifier: GPL-3.0-or-later
"""A sampler function run on the host, on a model and noises that are made up, to see what it does."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""noise(sigma, sigma_next): a sample of the state's shape, as k-diffusion has it."""
Callback = Callable[[dict[str, Any]], None]
Predict = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> a prediction [2, ...]: denoised, and uncond, which the ``*_cfg_pp`` samplers read."""

MAX_CALLS = 2000
"""Of a run: every state takes a coefficient for each, and adaptive steps may never end on numbers."""
NOT_ONE_BY_ONE = "it does not report its steps one by one"


class Untraceable(Exception):
    """Why the trace of a sampler cannot be found."""


class SamplerRun(Protocol):
    """A k-diffusion sampler function with everything bound but what a dry run changes."""

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, callback: Callback | None, noise: NoiseSampler, /
    ) -> Tensor: ...


@dataclass
class DryRun:
    """What a dry run did."""

    calls: list[tuple[float, int]] = field(default_factory=list)
    """(sigma, noises before) of every model call."""
    states: list[Tensor] = field(default_factory=list)
    noise_sigmas: list[tuple[float, float]] = field(default_factory=list)
    last_call_of_step: dict[int, int] = field(default_factory=dict)
    """The newest call when a step reported itself."""

    def steps(self, count: int) -> list[int]:
        """The step of every call. Raises :class:`Untraceable` unless each of the steps, the last perhaps not,
        reports after its first call.
        """
        reported = sorted(self.last_call_of_step)
        if reported not in (list(range(count)), list(range(count - 1))) or self.last_call_of_step.get(0) != 0:
            raise Untraceable(NOT_ONE_BY_ONE)
        starts = sorted(self.last_call_of_step.values())
        return [bisect.bisect_right(starts, call) - 1 for call in range(len(self.calls))]


@dataclass(frozen=True)
class DryRuns:
    """What is traced: ``stand_in(predict)`` makes a model that the sampler accepts."""

    run: SamplerRun
    stand_in: Callable[[Predict], Any]
    sigmas: Tensor

    def dry_run(
        self, x: Tensor, predict: Callable[[int, Tensor, Tensor], Tensor], draw: Callable[[int], Tensor]
    ) -> DryRun:
        """Run from x; the m-th model call is answered by predict(m, x, sigma), the q-th noise by draw(q)."""
        seen, last_step = DryRun(), len(self.sigmas) - 2

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            if len(seen.calls) == MAX_CALLS:
                raise Untraceable(f"it makes more than {MAX_CALLS} model calls")
            seen.calls.append((float(sigma[0]), len(seen.noise_sigmas)))
            seen.states.append(x.clone())
            return predict(len(seen.calls) - 1, x, sigma)

        def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            seen.noise_sigmas.append((float(sigma), float(sigma_next)))
            return draw(len(seen.noise_sigmas) - 1)

        def callback(report: dict[str, Any]) -> None:
            if report["i"] > last_step:
                raise Untraceable(NOT_ONE_BY_ONE)
            seen.last_call_of_step[int(report["i"])] = len(seen.calls) - 1

        with torch.random.fork_rng(devices=[]):
            sigmas = self.sigmas.clone()  # some samplers write into their sigmas
            try:
                self.run(self.stand_in(model), x, sigmas, callback, noise)
            except Untraceable:
                raise
            except Exception as error:
                raise Untraceable(f"its dry run failed ({type(error).__name__}: {error})") from error
        return seen
