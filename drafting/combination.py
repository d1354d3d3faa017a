# SPDX-License-Identifier: GPL-3.0-or-later
"""Linear combinations of latents: composed on the host as numbers, evaluated on the device together.

Drafts, arrivals and errors of a round are all combinations of a few latents. Written so, all drafts of a
window are one matrix product, and every decision of the round is read from one matrix of inner products: 17
launches and one wait a round, where plain tensors take 89 to 146 launches for the same results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..kernels.linear_combinations import linear_combinations

SIGMA_RTOL = 1e-3
"""Sigmas that differ by less, relatively, are one."""


class Combination:
    """sum_j w_j t_j of the tensors t_j of a :class:`Span`, as {j: w_j}. An immutable vector."""

    __slots__ = ("weights",)

    def __init__(self, weights: Mapping[int, float] | None = None) -> None:
        self.weights: Mapping[int, float] = weights or {}

    def __add__(self, other: Combination) -> Combination:
        return weighted_sum([(1.0, self), (1.0, other)])

    def __sub__(self, other: Combination) -> Combination:
        return weighted_sum([(1.0, self), (-1.0, other)])

    def __mul__(self, factor: float) -> Combination:
        return weighted_sum([(factor, self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Combination:
        return weighted_sum([(1.0 / divisor, self)])


Prediction = tuple[Combination, ...]
"""A prediction of P parts, or what has been made of one."""


def weighted_sum(terms: Iterable[tuple[float, Combination]]) -> Combination:
    """sum_i w_i c_i; what has no weight takes no part."""
    total: dict[int, float] = {}
    for weight, combination in terms:
        if weight == 0:
            continue
        for j, w in combination.weights.items():
            total[j] = total.get(j, 0.0) + weight * w
    return Combination(total)


def difference(one: Prediction, other: Prediction) -> Prediction:
    """one - other, part by part."""
    return tuple(a - b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Evaluation:
    """A prediction [P, ...] that the model made at the state x [...] and sigma; or that was interpolated
    there, which tells nothing new.
    """

    x: Tensor
    sigma: float
    prediction: Tensor
    interpolated: bool = False


@dataclass(frozen=True)
class SpanEvaluation:
    """An evaluation as combinations: P of them for its prediction, and one for its state."""

    x: Combination
    sigma: float
    prediction: Prediction


E = TypeVar("E", Evaluation, SpanEvaluation)


def newest_per_sigma(evaluations: Sequence[E], rising: bool = False) -> list[E]:
    """In the order of a run: from high to low sigma, or from low to high where sigmas are ``rising``. Of
    several at one sigma the last given.

    Samplers that compute sigmas of their own come back to one with a rounding of it, and no polynomial goes
    through both.
    """
    kept: list[E] = []
    for each in reversed(evaluations):
        if all(abs(each.sigma - other.sigma) > SIGMA_RTOL * each.sigma for other in kept):
            kept.append(each)
    return sorted(kept, key=lambda each: each.sigma if rising else -each.sigma)


class Span:
    """Tensors t_j of one shape, and the combinations of them.

    parts: lengths of the parts that a latent [B, 1, sum(parts)] is packed from, such as picture and sound.
    Its pieces are the rows of the first part, then those of the second, ...: each is to come out right.
    """

    def __init__(self, parts: Sequence[int] = ()) -> None:
        self._tensors: list[Tensor] = []
        self._parts = tuple(parts) if len(parts) > 1 else ()
        self._evaluations: dict[int, tuple[Evaluation, SpanEvaluation]] = {}

    def vector(self, tensor: Tensor) -> Combination:
        """The tensor itself, as a combination."""
        self._tensors.append(tensor)
        return Combination({len(self._tensors) - 1: 1.0})

    def evaluation(self, evaluation: Evaluation) -> SpanEvaluation:
        """The same for a prediction and its state, which are taken in once."""
        if id(evaluation) not in self._evaluations:
            prediction = tuple(self.vector(part) for part in evaluation.prediction)
            combined = SpanEvaluation(self.vector(evaluation.x), evaluation.sigma, prediction)
            self._evaluations[id(evaluation)] = evaluation, combined
        return self._evaluations[id(evaluation)][1]

    def evaluate(self, combinations: Sequence[Combination]) -> Tensor:
        """What they are: [len(combinations), ...], from one read of every tensor that takes part."""
        used = sorted(set().union(*(combination.weights for combination in combinations)))
        weights = [[combination.weights.get(j, 0.0) for j in used] for combination in combinations]
        return linear_combinations(weights, [self._tensors[j] for j in used])

    def gram(self, combinations: Sequence[Combination]) -> Gram:
        """The inner products of the ``combinations``, started now and read when they are asked for."""
        if not combinations:
            return Gram(list)
        vectors = self.evaluate(combinations)
        parts = vectors.split(self._parts, -1) if self._parts else [vectors]
        rows = [part.reshape(*part.shape[:2], -1).movedim(1, 0) for part in parts]
        pieces = torch.cat([each @ each.mT for each in rows])
        if len(pieces) > 1:
            pieces = torch.cat([pieces.sum(0, keepdim=True), pieces])
        return Gram(pieces.tolist)


class Gram:
    """The Gram matrix of vectors: inner products of their combinations. The host waits for the first.

    read: the matrix of the whole, then those of its pieces where it has several.
    """

    def __init__(self, read: Callable[[], list[list[list[float]]]], piece: int = 0) -> None:
        self._read, self._piece = functools.cache(read), piece

    def of_piece(self, piece: int) -> Gram:
        """Of one piece of the vectors, counted from 1; 0 is the whole."""
        return Gram(self._read, piece)

    def __call__(self, one: Combination, other: Combination) -> float:
        if not (one.weights and other.weights):
            return 0.0
        products = self._read()[self._piece]
        return sum(v * w * products[i][j] for i, v in one.weights.items() for j, w in other.weights.items())

    def inner(self, one: Prediction, other: Prediction) -> float:
        """Of predictions: summed over their parts."""
        return sum(map(self, one, other))
