# SPDX-License-Identifier: GPL-3.0-or-later
"""What a round tells: how near its drafts are to where the sampler will arrive, and how predictions change
between them.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..common.alpha import alpha_flow
from ..common.sampler_trace import ModelCall
from .combination import Combination, Gram, Prediction, weighted_sum
from .space import Basis, Space

MIN_LIPSCHITZ = 0.25
"""Predictions are never taken to differ less than this part of how far their states are apart."""
SECANT_SAFETY = 2.0
"""How many times as far as it missed its own pair a secant is taken to miss at another call."""
FLOW_MARGIN, FLOW_MARGIN_IN_NOISE, FLOW_NOISE = 3.0, 8.0, 2.0
"""How much further off than is found here predictions of flow models are taken to be, and how much where
there is over FLOW_NOISE times as much noise as data. On tiny/flow they were off 2.5 to 3 times as far as
found between sigma 0.95 and 0.7, as far as found below 0.5, of data whose RMS is 0.7; and the errors of a run
add up. What these margins give: ``bench draft_flow``.
"""


@dataclass(frozen=True)
class Pair:
    """Two evaluations of one model call: the difference of their states x, and of their predictions D."""

    x: Combination
    D: Prediction


@dataclass(frozen=True)
class RoundStatistics:
    """Numbers that follow from the inner products of a round. The host waits for the device when the first is
    asked for.

    x~ is the draft of a model call, x the state at which the sampler will make it.
    """

    space: Space
    basis: Basis
    calls: Sequence[ModelCall]
    parameter: Callable[[], float]
    """Of the predictor: the one that would have predicted best."""
    lipschitz_elsewhere: Callable[[], float] = lambda: 1.0
    """Along directions of which a round tells nothing."""
    numels: tuple[int, ...] = (0,)
    """Of the latent, and of each of its pieces where it has several (``Span``)."""
    gram: Gram = field(default_factory=lambda: Gram(list))
    errors: dict[int, Prediction] = field(default_factory=dict)
    """By call, from where the sampler stood: its prediction less what was predicted of it. Only where drafts
    are verified.
    """
    pairs: dict[int, Pair] = field(default_factory=dict)
    """Of calls that had been evaluated before, at a draft that was dropped."""
    missed: dict[int, Prediction] = field(default_factory=dict)
    """By how much predictions that were interpolated may be off."""
    of_draft: dict[int, float] = field(default_factory=dict)
    """How much of what the draft behind is off goes into them (``interpolation.share_of_draft``)."""
    third: Prediction = ()
    """F[t0, t1, t2, t3] of the newest evaluations, where there are so many (``interpolation``)."""
    shifts: dict[int, Combination] = field(default_factory=dict)
    """Of drafts that were made in an earlier round: the state evaluated less where this round expects it."""

    def deviation(self, m: int) -> float:
        """How far the carried prediction of the m-th call may be off, relative to the data, as far as one can
        know without an evaluation at x: Lipschitz constant times distance, and the error of interpolation. Of
        several pictures, and parts of them, the one that may be off furthest.
        """
        return max(
            self._carrying_error(m, piece) + self.interpolation_error(m, piece) for piece in self.pieces
        )

    def _carrying_error(self, m: int, piece: int) -> float:
        return self.lipschitz(m, piece) * self.distance(m, piece)

    def interpolation_error(self, m: int, piece: int = 0) -> float:
        """Of the m-th prediction, relative to the data: what may be missed between the evaluations, and what
        the draft behind may be off. 0 where it was evaluated.
        """
        if m not in self.missed:
            return 0.0
        of_draft = self.of_draft[m] * self._carrying_error(m + 1, piece)
        return self._rms(self.missed[m], piece) / self.space.sigma_data + of_draft

    @property
    def third_rms(self) -> float:
        """RMS of F[t0, t1, t2, t3], of the piece where it is largest."""
        return max(self._rms(self.third, piece) for piece in self.pieces) if self.third else math.inf

    @property
    def pieces(self) -> Sequence[int]:
        """0 for one picture of one part, else 1, 2, ..."""
        return range(1, len(self.numels)) if len(self.numels) > 1 else (0,)

    def dD_dx(self, m: int) -> float:
        """By which the prediction of the m-th call is carried.

        The secant through its pair; without one, what it is with eps or F held fixed, times the share that
        the secant through the nearest pair is of that.
        """
        near, held = self._nearest_pair(m), self._held(m)
        if near is None:
            return held
        return self._secant(m) if near == m else held * self._share(near)

    def distance(self, m: int, piece: int = 0) -> float:
        """RMS(x - x~) / s of the m-th call."""
        offset = self._offsets[m]
        square = max(self.gram.of_piece(piece)(offset, offset), 0.0)
        rms = math.sqrt(square / self.numels[piece])
        return rms / self.space.scale(self.calls[m].sigma)

    def lipschitz(self, m: int, piece: int = 0) -> float:
        """How much further than its state from the sampler's, relative to data, the prediction carried from a
        draft may be off.

        In the direction of its pair as far as the secant missed; across it as far as the last dropped draft
        was off; of flow models by a margin more.
        """
        return self._lipschitz(m, piece) * self.margin(m)

    def margin(self, m: int) -> float:
        """How much further off than is found here the m-th prediction is taken to be."""
        if self.space.alpha is not alpha_flow:
            return 1.0
        sigma = self.calls[m].sigma
        return FLOW_MARGIN_IN_NOISE if sigma > FLOW_NOISE * alpha_flow(sigma) else FLOW_MARGIN

    def _lipschitz(self, m: int, piece: int) -> float:
        near, gram = self._nearest_pair(m), self.gram.of_piece(piece)
        if near is None:
            return self.lipschitz_elsewhere()
        pair, sigma = self.pairs[near], self.calls[near].sigma
        if near != m:
            missed = secant_error(gram, pair, self._share(near) * self._held(near), self.space, sigma)
            return max(SECANT_SAFETY * missed, MIN_LIPSCHITZ)
        offset, missed = self._offsets[m], secant_error(gram, pair, self._secant(m), self.space, sigma)
        squares = gram(pair.x, pair.x) * gram(offset, offset)
        cos2 = min(gram(pair.x, offset) ** 2 / squares, 1.0) if squares > 0 else 1.0
        across = self.lipschitz_elsewhere()
        return max(math.sqrt(cos2 * missed**2 + (1 - cos2) * across**2), MIN_LIPSCHITZ)

    def _rms(self, vectors: Prediction, piece: int) -> float:
        square = max(self.gram.of_piece(piece).inner(vectors, vectors), 0.0)
        return math.sqrt(square / (len(vectors) * self.numels[piece]))

    def _nearest_pair(self, m: int) -> int | None:
        """The m-th call, or the last before it that has a pair."""
        return max(
            (i for i, pair in self.pairs.items() if i <= m and self.gram(pair.x, pair.x) > 0), default=None
        )

    def _held(self, m: int) -> float:
        return self.space.dD_dx(self.basis, self.calls[m].sigma)

    def _secant(self, m: int) -> float:
        """The dD/dx that carries one prediction of the pair to the other, by least squares."""
        pair = self.pairs[m]
        return sum(self.gram(pair.x, part) for part in pair.D) / (len(pair.D) * self.gram(pair.x, pair.x))

    def _share(self, m: int) -> float:
        held = self._held(m)
        return min(max(self._secant(m) / held, -1.0), 1.0) if held else 1.0

    @functools.cached_property
    def _offsets(self) -> dict[int, Combination]:
        """x - x~ of every drafted call: the recurrence of its :class:`~..common.sampler_trace.ModelCall`, for
        the differences from what was predicted.
        """
        expected = defaultdict[int, Combination](Combination)
        offsets = defaultdict[int, Combination](Combination)
        errors = defaultdict[int, Prediction](lambda: (Combination(),))
        for m, error in sorted(self.errors.items()):
            errors[m] = tuple(part + offsets[m] * self.dD_dx(m) for part in error)
            expected[m + 1] = weighted_sum(self.calls[m + 1].terms(m + 1, expected, errors))
            shift = self.shifts.get(m + 1)
            offsets[m + 1] = expected[m + 1] if shift is None else expected[m + 1] - shift
        return dict(offsets)


def secant_error(gram: Gram, pair: Pair, dD_dx: float, space: Space, sigma: float) -> float:
    """RMS(D - D~ - dD/dx (x - x~)) over RMS(x - x~), relative to data: times s / sigma_d."""
    missed = tuple(part - pair.x * dD_dx for part in pair.D)
    size = gram(pair.x, pair.x)
    if size == 0:
        return 0.0 if gram.inner(missed, missed) <= 0 else math.inf
    square = max(gram.inner(missed, missed), 0.0) / (len(missed) * size)
    return math.sqrt(square) * space.scale(sigma) / space.sigma_data
