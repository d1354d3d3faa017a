# SPDX-License-Identifier: GPL-3.0-or-later
"""Linear combinations of latents: composed on the host as numbers, worked out on the device together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..kernels.linear_combinations import linear_combinations

Combination = dict[int, float]
"""sum_j w_j t_j as {j: w_j}."""
Parts = tuple[Combination, ...]
"""A prediction of P parts, or what has been made of one."""
ALIKE = 1e-3
"""Sigmas that differ by less, relatively, are one."""


@dataclass(frozen=True)
class Known:
    """A prediction [P, ...] made at the state x [...] and sigma."""

    x: Tensor
    sigma: float
    prediction: Tensor


@dataclass(frozen=True)
class Combined:
    """A prediction and the state it belongs to, known or not, as combinations: P of them, and one."""

    x: Combination
    sigma: float
    prediction: Parts


Made = TypeVar("Made", Known, Combined)


def newest(known: Sequence[Made]) -> list[Made]:
    """From high to low sigma; of several at one sigma the last given.

    Samplers that compute sigmas of their own come back to one with a rounding of it, and no polynomial goes
    through both.
    """
    kept: list[Made] = []
    for each in reversed(known):
        if all(abs(each.sigma - other.sigma) > ALIKE * each.sigma for other in kept):
            kept.append(each)
    return sorted(kept, key=lambda each: -each.sigma)


def combine(terms: Iterable[tuple[float, Combination]]) -> Combination:
    """sum_i w_i c_i; what has no weight takes no part."""
    total: Combination = {}
    for weight, combination in terms:
        if weight == 0:
            continue
        for j, w in combination.items():
            total[j] = total.get(j, 0.0) + weight * w
    return total


def less(one: Combination, other: Combination) -> Combination:
    """one - other."""
    return combine([(1.0, one), (-1.0, other)])


class Span:
    """Tensors t_j of one shape, and the combinations of them."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._known: dict[int, tuple[Known, Combined]] = {}

    def vector(self, tensor: Tensor) -> Combination:
        """The tensor itself, as a combination."""
        self._tensors.append(tensor)
        return {len(self._tensors) - 1: 1.0}

    def known(self, known: Known) -> Combined:
        """The same for a prediction and its state, which are taken in once."""
        if id(known) not in self._known:
            prediction = tuple(self.vector(part) for part in known.prediction)
            self._known[id(known)] = known, Combined(self.vector(known.x), known.sigma, prediction)
        return self._known[id(known)][1]

    def evaluate(self, combinations: Sequence[Combination]) -> Tensor:
        """What they are: [len(combinations), ...], from one read of every tensor that takes part."""
        part = sorted(set().union(*combinations))
        weights = [[combination.get(j, 0.0) for j in part] for combination in combinations]
        return linear_combinations(weights, [self._tensors[j] for j in part])

    def gram(self, combinations: Sequence[Combination]) -> Gram:
        """The inner products of the ``combinations``, worked out now and read when they are asked for."""
        if not combinations:
            return Gram(list)
        vectors = self.evaluate(combinations).flatten(1)
        return Gram((vectors @ vectors.mT).tolist)


class Gram:
    """Inner products of combinations of vectors of which all inner products are known. The host waits for the
    first.
    """

    def __init__(self, read: Callable[[], list[list[float]]]) -> None:
        self._products = functools.cache(read)

    def __call__(self, one: Combination, other: Combination) -> float:
        products = self._products()
        return sum(v * w * products[i][j] for i, v in one.items() for j, w in other.items())

    def inner(self, one: Parts, other: Parts) -> float:
        """Of predictions: summed over their parts."""
        return sum(map(self, one, other))
