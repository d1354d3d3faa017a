# SPDX-License-Identifier: GPL-3.0-or-later
"""How a draft guesses the predictions it has not got yet, and how a prediction is carried to another state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .coordinates import Space

Basis = Literal["eps", "F", "D"]


@dataclass(frozen=True)
class Known:
    """A prediction [P, ...] made at the state x [...] and sigma."""

    x: Tensor
    sigma: float
    prediction: Tensor


@dataclass(frozen=True)
class Guess:
    """Extrapolate predictions, expressed in ``basis``, by a polynomial in sqrt(sigma) through the newest ones.

    ``orders`` are tried in hindsight after every round (:meth:`best_order`); the first is used until there is evidence. One
    order, 0, in eps is the paper's frozen draft.
    """

    basis: Basis = "eps"
    orders: tuple[int, ...] = (0,)

    def __call__(self, space: Space, known: Sequence[Known], order: int, x: Tensor, sigma: float) -> Tensor:
        """The prediction [P, ...] to expect at (x, sigma); ``known`` from old to new, no two at one sigma."""
        nodes = known[-1 - order :]
        assert nodes, "nothing is known to guess from"
        weights = lagrange([math.sqrt(node.sigma) for node in nodes], math.sqrt(sigma))
        terms = [weight * self._of(space, node) for weight, node in zip(weights, nodes, strict=True)]
        value = sum(terms[1:], terms[0])
        if self.basis == "F":
            return space.D_of_F(x, value, sigma)
        return space.D_of_eps(x, value, sigma) if self.basis == "eps" else value

    def best_order(self, space: Space, known: Sequence[Known], seen: Known) -> int:
        """The order that guesses best what was seen, from what was known when it was drafted.

        High orders follow a smooth trajectory further; where predictions are rough (few steps, low precision, injected noise)
        they amplify what is no trend.
        """
        orders = [order for order in self.orders if len(known) > order]
        if len(self.orders) == 1 or self.orders[0] not in orders:
            return self.orders[0]
        errors = [(self(space, known, order, seen.x, seen.sigma) - seen.prediction).square().mean() for order in orders]
        return orders[int(torch.stack(errors).argmin())]

    def _of(self, space: Space, node: Known) -> Tensor:
        if self.basis == "F":
            return space.F_of(node.x, node.prediction, node.sigma)
        return space.eps_of(node.x, node.prediction, node.sigma) if self.basis == "eps" else node.prediction


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
    """The prediction [P, ...] at x from one at a state near by, with eps, F or D held fixed: D + c (x - x~)."""
    if basis == "D":
        return known.prediction
    c = space.gain(known.sigma) if basis == "F" else 1.0 / space.signal(known.sigma)
    return known.prediction + c * (x - known.x)
