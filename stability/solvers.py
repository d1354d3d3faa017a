# SPDX-License-Identifier: GPL-3.0-or-later
"""Solvers of the probability flow dx/dsigma = (x - D) / sigma that grids are made for, run on many grids at
once.

A solver is a value: it carries its step and says its order and memory itself. States are [G, P, r], noise
levels [G], one grid a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..common import steps

Model = Callable[[Tensor, Tensor], Tensor]
"""D(x [G, P, r], sigma [G]) -> [G, P, r]."""
History = Sequence[tuple[Tensor, Tensor]]
"""(sigma [G], D [G, P, r]) of the steps before, the latest first."""
Step = Callable[[Model, Tensor, Tensor, Tensor, History], tuple[Tensor, Tensor]]
"""(model, x, sigma, sigma_next, history) -> (x at sigma_next, D at x)."""


@dataclass(frozen=True)
class Solver:
    """A solver as a grid sees it."""

    name: str
    step: Step
    order: int
    """p, where the error of a step of length h is of order h^(p + 1)."""
    memory: int
    """How many steps before the present one its step reads."""
    unevenness_price: float
    """Weight in a grid's loss of the squared second differences of log step lengths. It stands for what a few
    probes do not show, and is higher where a step extrapolates the one before.
    """

    def solve(self, model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
        """The end [G, P, r] of x [1 or G, P, r] on grids [G, N + 1] that fall to 0.

        The step to 0 is x = D, as in all samplers of ComfyUI.
        """
        history: list[tuple[Tensor, Tensor]] = []
        for sigma, sigma_next in zip(sigmas.T[:-2], sigmas.T[1:-1], strict=True):
            x, D = self.step(model, x, sigma, sigma_next, history)
            history = [(sigma, D), *history][: self.memory]
        return model(x, sigmas[:, -2])


def _per_grid(values: Tensor) -> Tensor:
    """[G] as [G, 1, 1]."""
    return values[:, None, None]


def euler_step(
    model: Model, x: Tensor, sigma: Tensor, sigma_next: Tensor, history: History
) -> tuple[Tensor, Tensor]:
    """x' = D + (sigma' / sigma)(x - D)."""
    D = model(x, sigma)
    return steps.euler_step(x, D, _per_grid(sigma), _per_grid(sigma_next)), D


def heun_step(
    model: Model, x: Tensor, sigma: Tensor, sigma_next: Tensor, history: History
) -> tuple[Tensor, Tensor]:
    """The mean of the slopes at both ends (Karras et al. 2022, algorithm 1): two model calls."""
    D, h = model(x, sigma), _per_grid(sigma_next - sigma)
    d = (x - D) / _per_grid(sigma)
    x_euler = x + h * d
    d_next = (x_euler - model(x_euler, sigma_next)) / _per_grid(sigma_next)
    return x + h / 2 * (d + d_next), D


def dpmpp_2m_step(
    model: Model, x: Tensor, sigma: Tensor, sigma_next: Tensor, history: History
) -> tuple[Tensor, Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2). Without history, DDIM's step."""
    D, h = model(x, sigma), _per_grid((sigma / sigma_next).log())
    if not history:
        return steps.dpmpp_2m_step(x, D, None, h, h), D
    sigma_last, D_last = history[0]
    return steps.dpmpp_2m_step(x, D, D_last, h, _per_grid((sigma_last / sigma).log())), D


EULER = Solver("euler", euler_step, order=1, memory=0, unevenness_price=0.001)
DPMPP_2M = Solver("dpmpp_2m", dpmpp_2m_step, order=2, memory=1, unevenness_price=0.01)
HEUN = Solver("heun", heun_step, order=2, memory=0, unevenness_price=0.001)
SOLVERS = {solver.name: solver for solver in (EULER, DPMPP_2M, HEUN)}
"""By the name that the node's input shows."""
