# SPDX-License-Identifier: GPL-3.0-or-later
"""How a draft guesses the predictions it has not got yet, and how a prediction is carried to another state."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..kernels import carry as kernels_carry
from ..kernels.linear_combination import linear_combination
from .coordinates import Space

Basis = Literal["eps", "F"]
Setting = Callable[[], float]
"""A number that the device may still be computing: the host waits for it at the first call."""


@dataclass(frozen=True)
class Known:
    """A prediction [P, ...] made at the state x [...] and sigma."""

    x: Tensor
    sigma: float
    prediction: Tensor


class Guess(Protocol):
    """How to guess a prediction. It has one number to set: ``start`` until there is evidence, then :meth:`hindsight`'s."""

    @property
    def start(self) -> float: ...

    def __call__(self, space: Space, known: Sequence[Known], setting: float, x: Tensor, sigma: float) -> Tensor:
        """The prediction [P, ...] to expect at (x, sigma); ``known`` from old to new, no two at one sigma."""

    def hindsight(self, space: Space, known: Sequence[Known], seen: Known) -> Setting:
        """The setting that guesses best what was ``seen``, from what was ``known`` when it was drafted."""


@dataclass(frozen=True)
class Trend:
    """Extrapolates eps by a polynomial in sqrt(sigma) through the newest predictions; what is set is its order, one of ``orders``.

    High orders follow a smooth trajectory further; where predictions are rough (few steps, low precision) they amplify what is
    no trend. The one order 0 is the paper's frozen draft.
    """

    orders: tuple[int, ...]

    @property
    def start(self) -> float:
        return self.orders[0]

    def __call__(self, space: Space, known: Sequence[Known], setting: float, x: Tensor, sigma: float) -> Tensor:
        return linear_combination(*self._terms(space, known, int(setting), x, sigma))

    def _terms(self, space: Space, known: Sequence[Known], order: int, x: Tensor, sigma: float) -> tuple[list[float], list[Tensor]]:
        """(x - sigma sum_i l_i eps_i) / alpha with eps_i = (x_i - alpha_i D_i) / sigma_i, as weights of the D_i, the x_i, and x."""
        nodes, alpha = known[-1 - order :], space.signal(sigma)
        assert nodes, "nothing is known to guess from"
        if alpha == 0:  # all is noise: eps says nothing of D
            return [1.0], [nodes[-1].prediction]
        shares = lagrange([math.sqrt(node.sigma) for node in nodes], math.sqrt(sigma))
        of_x = [-sigma * share / (node.sigma * alpha) for share, node in zip(shares, nodes, strict=True)]
        of_D = [-weight * space.signal(node.sigma) for weight, node in zip(of_x, nodes, strict=True)]
        return [*of_D, *of_x, 1 / alpha], [*(node.prediction for node in nodes), *(node.x for node in nodes), x]

    def hindsight(self, space: Space, known: Sequence[Known], seen: Known) -> Setting:
        orders = [order for order in self.orders if len(known) > order]
        if len(self.orders) == 1 or self.orders[0] not in orders:
            return lambda: self.start

        def error(order: int) -> Tensor:
            weights, tensors = self._terms(space, known, order, seen.x, seen.sigma)
            return torch.linalg.vector_norm(linear_combination([*weights, -1.0], [*tensors, seen.prediction]))

        best = torch.stack([error(order) for order in orders]).argmin()
        return functools.cache(lambda: orders[int(best)])


@dataclass(frozen=True)
class Following:
    """The newest prediction, following x by a share lambda of what Gaussian data would: D + lambda (D_F(x) - D), F held fixed in D_F.

    For states with fresh noise. A network that sees through noise hardly follows it (lambda near 0), one whose data is as wide
    as the noise does (near 1). What is set is lambda, by least squares.
    """

    start: float = 1.0

    def __call__(self, space: Space, known: Sequence[Known], setting: float, x: Tensor, sigma: float) -> Tensor:
        return self._follow(space, known[-1], x, sigma, 1.0, setting)

    def hindsight(self, space: Space, known: Sequence[Known], seen: Known) -> Setting:
        pull = self._follow(space, known[-1], seen.x, seen.sigma, 0.0, 1.0).flatten()
        size = torch.dot(pull, pull).clamp(min=torch.finfo(pull.dtype).tiny)
        share = (torch.dot(pull, (seen.prediction - known[-1].prediction).flatten()) / size).clamp(0.0, 1.0)
        return functools.cache(lambda: float(share))

    def _follow(self, space: Space, node: Known, x: Tensor, sigma: float, kept: float, share: float) -> Tensor:
        """kept D + share (D_F(x) - D) for the D of ``node``."""
        held = math.sin(space.angle(sigma)) / math.sin(space.angle(node.sigma))
        weights = [kept + share * (held - 1), -share * held * space.gain(node.sigma), share * space.gain(sigma)]
        return linear_combination(weights, [node.prediction, node.x, x])


def lagrange(times: Sequence[float], t: float) -> list[float]:
    """Weights of the interpolating polynomial through ``times`` at t."""
    weights = []
    for i, own in enumerate(times):
        weight = 1.0
        for j, other in enumerate(times):
            if j != i:
                weight *= (t - other) / (own - other)
        weights.append(weight)
    return weights


def carry(space: Space, basis: Basis, known: Known, x: Tensor) -> Tensor:
    """The prediction [P, ...] at x from one at a state near by, with eps or F held fixed: D + c (x - x~)."""
    return carry_and_measure(space, basis, known, x)[0]


def carry_and_measure(space: Space, basis: Basis, known: Known, x: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`carry` gives, and ||x - x~||, which stays on the device."""
    alpha = space.signal(known.sigma)
    c = space.gain(known.sigma) if basis == "F" or alpha == 0 else 1.0 / alpha
    return kernels_carry.carry(known.prediction, known.x, x, c)
