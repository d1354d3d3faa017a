# SPDX-License-Identifier: GPL-3.0-or-later
"""How predictions that are not evaluated yet are predicted from those that are: the drafts' source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from .combination import Combination, Gram, Prediction, SpanEvaluation, difference, weighted_sum
from .space import Basis, Space


class Predictor(Protocol):
    """Predicts a prediction. It has one parameter: ``start`` until there is evidence, then what
    :meth:`fit` finds.
    """

    @property
    def start(self) -> float: ...

    def __call__(
        self,
        space: Space,
        known: Sequence[SpanEvaluation],
        parameter: float,
        x: Combination,
        sigma: float,
    ) -> Prediction:
        """The P parts to expect at (x, sigma); ``known`` from old to new, no two at one sigma."""

    def residuals(
        self, space: Space, known: Sequence[SpanEvaluation], seen: SpanEvaluation
    ) -> list[Prediction]:
        """What :meth:`fit` needs to find the parameter that predicts ``seen`` best from ``known``."""

    def fit(self, residuals: Sequence[Prediction], gram: Gram) -> float:
        """The best parameter, from the inner products of the residuals."""


@dataclass(frozen=True)
class EpsPolynomial:
    """Extrapolates eps by a polynomial in sqrt(sigma) through the newest predictions. Its parameter is the
    order.

    High orders follow a smooth trajectory further; where predictions are rough (few steps, low precision)
    they amplify what is no trend. The one order 0 is the paper's frozen draft.
    """

    orders: tuple[int, ...]

    @property
    def start(self) -> float:
        return self.orders[0]

    def __call__(
        self,
        space: Space,
        known: Sequence[SpanEvaluation],
        parameter: float,
        x: Combination,
        sigma: float,
    ) -> Prediction:
        """eps(sigma) = sum_i l_i(sqrt(sigma)) eps_i over the last order + 1 evaluations, l_i Lagrange's."""
        nodes = known[-1 - int(parameter) :]
        assert nodes, "nothing is known to predict from"
        if space.alpha(sigma) == 0:  # all is noise: eps says nothing of D
            return nodes[-1].prediction
        weights = lagrange([math.sqrt(node.sigma) for node in nodes], math.sqrt(sigma))

        def part(p: int) -> Combination:
            eps = [space.eps_of(node.x, node.prediction[p], node.sigma) for node in nodes]
            return space.D_of_eps(x, weighted_sum(zip(weights, eps, strict=True)), sigma)

        return tuple(map(part, range(len(nodes[-1].prediction))))

    def residuals(
        self, space: Space, known: Sequence[SpanEvaluation], seen: SpanEvaluation
    ) -> list[Prediction]:
        """The errors of the orders; of no parts where there are too few predictions for one."""
        if len(self.orders) == 1 or len(known) <= self.orders[0]:
            return []

        def error(order: int) -> Prediction:
            return difference(self(space, known, order, seen.x, seen.sigma), seen.prediction)

        return [error(order) if len(known) > order else () for order in self.orders]

    def fit(self, residuals: Sequence[Prediction], gram: Gram) -> float:
        if not residuals:
            return self.start
        errors = [gram.inner(error, error) if error else math.inf for error in residuals]
        return self.orders[errors.index(min(errors))]


@dataclass(frozen=True)
class GaussianResponse:
    """The newest prediction, following x by a share lambda of what Gaussian data would:

    D + lambda (D_F(x) - D), F held fixed in D_F. For states with fresh noise. A network that sees through
    noise hardly follows it (lambda near 0), one whose data is as wide as the noise does (near 1). Its
    parameter is lambda.
    """

    start: float = 1.0

    def __call__(
        self,
        space: Space,
        known: Sequence[SpanEvaluation],
        parameter: float,
        x: Combination,
        sigma: float,
    ) -> Prediction:
        node = known[-1]

        def part(D: Combination) -> Combination:
            D_F = space.D_of_F(x, space.F_of(node.x, D, node.sigma), sigma)
            return D + (D_F - D) * parameter

        return tuple(map(part, node.prediction))

    def residuals(
        self, space: Space, known: Sequence[SpanEvaluation], seen: SpanEvaluation
    ) -> list[Prediction]:
        """How far lambda = 1 would have moved D, and how far it did move."""
        D = known[-1].prediction
        full = self(space, known, 1.0, seen.x, seen.sigma)
        return [difference(full, D), difference(seen.prediction, D)]

    def fit(self, residuals: Sequence[Prediction], gram: Gram) -> float:
        """Least squares, within [0, 1]."""
        full, moved = residuals
        square = gram.inner(full, full)
        return min(max(gram.inner(full, moved) / square, 0.0), 1.0) if square > 0 else 0.0


@dataclass(frozen=True)
class Drafts:
    """How a window makes its drafts, and what is held fixed while a draft's prediction is carried to the
    sampler.
    """

    predictor: Predictor
    carry: Basis


def _frozen(stochastic: bool) -> Drafts:
    """The paper's (arXiv 2603.25872): the newest eps, held fixed, in drafts and while they are carried."""
    return Drafts(EpsPolynomial((0,)), "eps")


def _extrapolated(stochastic: bool) -> Drafts:
    """What deviates least. eps of a smooth trajectory is extrapolated; eps at a state with fresh noise
    contains that noise, so there the newest prediction follows the state by a fitted share.
    """
    return Drafts(GaussianResponse() if stochastic else EpsPolynomial((2, 3, 1)), "F")


DraftsName = Literal["extrapolated", "frozen"]
DRAFTS: Mapping[DraftsName, Callable[[bool], Drafts]] = {"extrapolated": _extrapolated, "frozen": _frozen}
"""Name at the node -> the drafts of a sampler that is stochastic or not. The first is the default."""
assert set(DRAFTS) == set(get_args(DraftsName))


def lagrange(times: Sequence[float], t: float) -> list[float]:
    """l_i(t): the weights of the interpolating polynomial through ``times`` at t."""
    return [
        math.prod((t - other) / (own - other) for j, other in enumerate(times) if j != i)
        for i, own in enumerate(times)
    ]


def carried(known: SpanEvaluation, x: Combination, dD_dx: float) -> Prediction:
    """The prediction at x from one at a state x~ near by: D + dD/dx (x - x~)."""
    moved = (x - known.x) * dD_dx
    return tuple(D + moved for D in known.prediction)
