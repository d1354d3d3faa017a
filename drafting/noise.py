# SPDX-License-Identifier: GPL-3.0-or-later
"""One sequence of noises for a stochastic sampler and its drafts."""

from __future__ import annotations

from torch import Tensor

from .calls import NoiseSampler


class NoiseTape:
    """The noises of a sampler in the order it asks for them: drawn once, read again by drafts and by the sampler itself.

    A draft asks for the same noises in the same order as the sampler will, so the first to ask draws, and the sequence is
    the one that a plain run of the sampler draws, bit for bit.
    """

    def __init__(self, draw: NoiseSampler) -> None:
        self._draw = draw
        self._drawn = 0
        self._kept: dict[int, Tensor] = {}

    def reader(self, start: int = 0) -> NoiseSampler:
        """A noise sampler that reads from the ``start``-th noise on."""
        position = start

        def read(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            nonlocal position
            while self._drawn <= position:
                self._kept[self._drawn] = self._draw(sigma, sigma_next)
                self._drawn += 1
            position += 1
            return self._kept[position - 1]

        return read

    def forget(self, before: int) -> None:
        """Drop the noises that nobody will ask for again."""
        for index in [index for index in self._kept if index < before]:
            del self._kept[index]

    def __len__(self) -> int:
        return len(self._kept)
