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

from .calls import Call
from .coordinates import Space
from .predictors import Basis, slope
from .span import Combination, Gram, Parts, combine

LEAST_ROUGHNESS = 0.25
"""Predictions are never taken to differ less than this part of how far their states are apart."""
CAUTION = 2.0
"""How many times as far as it missed its own pair a secant is taken to miss at another question."""


@dataclass(frozen=True)
class Pair:
    """Two predictions of one question: the difference of their states, and theirs."""

    x: Combination
    D: Parts


@dataclass(frozen=True)
class Findings:
    """Numbers that follow from the inner products of a round. The host waits for the device when the first is
    asked for.
    """

    space: Space
    basis: Basis
    calls: Sequence[Call]
    setting: Callable[[], float]
    """Of the guess: the one that would have guessed best."""
    unpaired: Callable[[], float] = lambda: 1.0
    """The roughness along directions of which a round tells nothing."""
    size: int = 0
    """Numbers of a latent."""
    gram: Gram = field(default_factory=lambda: Gram(list))
    wrong: dict[int, Parts] = field(default_factory=dict)
    """By question, from where the sampler stood: what was answered less what had been guessed. Only where
    drafts are verified.
    """
    pairs: dict[int, Pair] = field(default_factory=dict)
    """Of questions that had been evaluated before, at a draft that was dropped."""

    def slope(self, m: int) -> float:
        """dD/dx by which the prediction of the m-th question is carried.

        The secant through its pair; without one, what it is with eps or F held fixed, times the share that
        the secant through the nearest pair is of that.
        """
        near, held = self._near(m), slope(self.space, self.basis, self.calls[m].sigma)
        if near is None:
            return held
        return self._secant(m) if near == m else held * self._share(near)

    def distance(self, m: int) -> float:
        """RMS(x - x~) / s: how far from the draft of the m-th question the sampler will arrive."""
        offset = self._offsets[m]
        return math.sqrt(max(self.gram(offset, offset), 0.0) / self.size) / self.space.scale(
            self.calls[m].sigma
        )

    def roughness(self, m: int) -> float:
        """How much further than its state from the sampler's, relative to data, the prediction carried from a
        draft may be off.

        In the direction of its pair as far as the secant missed; across it as far as the last dropped draft
        was off.
        """
        near = self._near(m)
        if near is None:
            return self.unpaired()
        pair, sigma = self.pairs[near], self.calls[near].sigma
        if near != m:
            shared = self._share(near) * slope(self.space, self.basis, sigma)
            return max(CAUTION * roughness(self.gram, pair, shared, self.space, sigma), LEAST_ROUGHNESS)
        offset, missed = self._offsets[m], roughness(self.gram, pair, self._secant(m), self.space, sigma)
        size = self.gram(pair.x, pair.x) * self.gram(offset, offset)
        along = min(self.gram(pair.x, offset) ** 2 / size, 1.0) if size > 0 else 1.0
        return max(math.sqrt(along * missed**2 + (1 - along) * self.unpaired() ** 2), LEAST_ROUGHNESS)

    def _near(self, m: int) -> int | None:
        """The m-th question, or the last before it that has a pair."""
        return max(
            (i for i, pair in self.pairs.items() if i <= m and self.gram(pair.x, pair.x) > 0), default=None
        )

    def _secant(self, m: int) -> float:
        """The slope that carries one prediction of the pair to the other, by least squares."""
        pair = self.pairs[m]
        return sum(self.gram(pair.x, part) for part in pair.D) / (len(pair.D) * self.gram(pair.x, pair.x))

    def _share(self, m: int) -> float:
        held = slope(self.space, self.basis, self.calls[m].sigma)
        return min(max(self._secant(m) / held, -1.0), 1.0) if held else 1.0

    @functools.cached_property
    def _offsets(self) -> dict[int, Combination]:
        """x - x~ of every question drafted: the recurrence of its :class:`~.calls.Call` for the differences
        from what was guessed.
        """
        offsets, errors = defaultdict[int, Combination](dict), defaultdict[int, Parts](lambda: ({},))
        for m, wrong in sorted(self.wrong.items()):
            errors[m] = tuple(combine([(1.0, part), (self.slope(m), offsets[m])]) for part in wrong)
            offsets[m + 1] = combine(self.calls[m + 1].terms(m + 1, offsets, errors))
        return dict(offsets)


def roughness(gram: Gram, pair: Pair, slope: float, space: Space, sigma: float) -> float:
    """RMS(D - D~ - slope (x - x~)) over RMS(x - x~), relative to data: times s / sigma_d."""
    missed = tuple(combine([(1.0, part), (-slope, pair.x)]) for part in pair.D)
    square = max(gram.inner(missed, missed), 0.0) / (len(missed) * gram(pair.x, pair.x))
    return math.sqrt(square) * space.scale(sigma) / space.sigma_data
