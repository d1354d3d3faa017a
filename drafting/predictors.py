# SPDX-License-Identifier: GPL-3.0-or-later
"""How a draft guesses the predictions it has not got yet, and how a prediction is carried to another
state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .coordinates import Space
from .span import Combination, Combined, Gram, Parts, combine, less

Basis = Literal["eps", "F"]


class Guess(Protocol):
    """How to guess a prediction. It has one number to set: ``start`` until there is evidence, then
    :meth:`hindsight`'s.
    """

    @property
    def start(self) -> float: ...

    def __call__(
        self, space: Space, known: Sequence[Combined], setting: float, x: Combination, sigma: float
    ) -> Parts:
        """The P parts of the prediction to expect at (x, sigma); ``known`` from old to new, no two at one
        sigma.
        """

    def evidence(self, space: Space, known: Sequence[Combined], seen: Combined) -> list[Parts]:
        """What tells the setting that guesses best what was ``seen`` from what was ``known`` when it was
        drafted.
        """

    def hindsight(self, evidence: Sequence[Parts], gram: Gram) -> float:
        """That setting, from the inner products of the evidence."""


@dataclass(frozen=True)
class Trend:
    """Extrapolates eps by a polynomial in sqrt(sigma) through the newest predictions; what is set is its
    order, one of ``orders``.

    High orders follow a smooth trajectory further; where predictions are rough (few steps, low precision)
    they amplify what is no trend. The one order 0 is the paper's frozen draft.
    """

    orders: tuple[int, ...]

    @property
    def start(self) -> float:
        return self.orders[0]

    def __call__(
        self, space: Space, known: Sequence[Combined], setting: float, x: Combination, sigma: float
    ) -> Parts:
        """(x - sigma sum_i l_i eps_i) / alpha with eps_i = (x_i - alpha_i D_i) / sigma_i."""
        nodes, alpha = known[-1 - int(setting) :], space.signal(sigma)
        assert nodes, "nothing is known to guess from"
        if alpha == 0:  # all is noise: eps says nothing of D
            return nodes[-1].prediction
        shares = lagrange([math.sqrt(node.sigma) for node in nodes], math.sqrt(sigma))
        of_x = [-sigma * share / (node.sigma * alpha) for share, node in zip(shares, nodes, strict=True)]
        of_D = [-weight * space.signal(node.sigma) for weight, node in zip(of_x, nodes, strict=True)]
        states = combine([(1 / alpha, x), *zip(of_x, (node.x for node in nodes), strict=True)])
        parts = zip(*(node.prediction for node in nodes), strict=True)
        return tuple(combine([(1.0, states), *zip(of_D, part, strict=True)]) for part in parts)

    def evidence(self, space: Space, known: Sequence[Combined], seen: Combined) -> list[Parts]:
        """The errors of the orders; of no parts where there are too few predictions for one."""
        if len(self.orders) == 1 or len(known) <= self.orders[0]:
            return []
        return [
            off(self(space, known, order, seen.x, seen.sigma), seen.prediction) if len(known) > order else ()
            for order in self.orders
        ]

    def hindsight(self, evidence: Sequence[Parts], gram: Gram) -> float:
        if not evidence:
            return self.start
        errors = [gram.inner(error, error) if error else math.inf for error in evidence]
        return self.orders[errors.index(min(errors))]


@dataclass(frozen=True)
class Following:
    """The newest prediction, following x by a share lambda of what Gaussian data would: D + lambda (D_F(x) -
    D), F held fixed in D_F.

    For states with fresh noise. A network that sees through noise hardly follows it (lambda near 0), one
    whose data is as wide as the noise does (near 1). What is set is lambda, by least squares.
    """

    start: float = 1.0

    def __call__(
        self, space: Space, known: Sequence[Combined], setting: float, x: Combination, sigma: float
    ) -> Parts:
        node = known[-1]
        held = math.sin(space.angle(sigma)) / math.sin(space.angle(node.sigma))
        states = combine(
            [(setting * space.gain(sigma), x), (-setting * held * space.gain(node.sigma), node.x)]
        )
        return tuple(combine([(1.0, states), (1 + setting * (held - 1), part)]) for part in node.prediction)

    def evidence(self, space: Space, known: Sequence[Combined], seen: Combined) -> list[Parts]:
        """How far lambda = 1 would have moved D, and how far it did move."""
        D = known[-1].prediction
        return [off(self(space, known, 1.0, seen.x, seen.sigma), D), off(seen.prediction, D)]

    def hindsight(self, evidence: Sequence[Parts], gram: Gram) -> float:
        pull, moved = evidence
        size = gram.inner(pull, pull)
        return min(max(gram.inner(pull, moved) / size, 0.0), 1.0) if size > 0 else 0.0


def off(one: Parts, other: Parts) -> Parts:
    """one - other, part by part."""
    return tuple(map(less, one, other))


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


def carried(known: Combined, x: Combination, slope: float) -> Parts:
    """The prediction at x from one at a state x~ near by, whose derivative is taken to be ``slope``: D +
    slope (x - x~).
    """
    moved = combine([(slope, x), (-slope, known.x)])
    return tuple(combine([(1.0, part), (1.0, moved)]) for part in known.prediction)


def slope(space: Space, basis: Basis, sigma: float) -> float:
    """dD/dx with eps or F held fixed."""
    alpha = space.signal(sigma)
    return (
        space.gain(sigma) if basis == "F" or alpha == 0 else 1.0 / alpha
    )  # where all is noise, eps says nothing of D
