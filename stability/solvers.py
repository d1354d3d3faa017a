# SPDX-License-Identifier: GPL-3.0-or-later
"""The three kinds of solver that grids are made for, run on many grids at once.

States are [G, P, r], sigmas [G] or [G, N + 1], one grid a row. The step to 0 is Euler's in all of them: x =
D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]
"""D(x [G, P, r], sigma [G]) -> [G, P, r]."""
Memory = tuple[Tensor, Tensor] | None
"""sigma [G] and D [G, P, r] of the step before."""
Step = Callable[[Model, Tensor, Tensor, Tensor, Memory], tuple[Tensor, Memory]]
"""(model, x, sigma, next sigma, memory) -> (x at the next sigma, memory)."""


@dataclass(frozen=True)
class Solver:
    """order: p, where the error of a step of length h is of order h^(p + 1).

    evenness: the price of uneven steps, for what the few probes do not show. It is higher where the step
    before is extrapolated.
    """

    step: Step
    order: int
    evenness: float


def euler_step(model: Model, x: Tensor, now: Tensor, then: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """x' = D + (sigma' / sigma)(x - D)."""
    D = model(x, now)
    return D + _wide(then / now) * (x - D), None


def heun_step(model: Model, x: Tensor, now: Tensor, then: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """Two calls: the mean of the slopes at both ends (Karras et al. 2022, algorithm 1)."""
    h = _wide(then - now)
    v = (x - model(x, now)) / _wide(now)
    ahead = x + h * v
    return x + h / 2 * (v + (ahead - model(ahead, then)) / _wide(then)), None


def dpmpp_2m_step(
    model: Model, x: Tensor, now: Tensor, then: Tensor, memory: Memory
) -> tuple[Tensor, Memory]:
    """DPM-Solver++(2M) (Lu et al. 2022): D extrapolated from this step and the one before; Euler's where
    there is none.
    """
    D = model(x, now)
    h = _wide((now / then).log())
    ahead = D
    if memory is not None:
        before, D_before = memory
        ahead = D + h / (2 * _wide((before / now).log())) * (D - D_before)
    return (-h).exp() * x - torch.expm1(-h) * ahead, (now, D)


SOLVERS = {
    "euler": Solver(euler_step, 1, 0.001),
    "dpmpp_2m": Solver(dpmpp_2m_step, 2, 0.01),
    "heun": Solver(heun_step, 2, 0.001),
}


def solve(solver: str, model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    """x: [1 or G, P, r] at sigmas[:, 0]; sigmas: [G, N + 1], falling, the last ones 0. Returns [G, P, r]."""
    memory: Memory = None
    for i in range(sigmas.shape[1] - 2):
        x, memory = SOLVERS[solver].step(model, x, sigmas[:, i], sigmas[:, i + 1], memory)
    return model(x, sigmas[:, -2])


def _wide(value: Tensor) -> Tensor:
    return value[:, None, None]
