# SPDX-License-Identifier: GPL-3.0-or-later
"""One sequence of noises for a stochastic sampler and its drafts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.dry_run import NoiseSampler


class NoiseTape:
    """The noises of a sampler in the order it asks for them: drawn once, whether a draft needs them first or
    the sampler itself.

    A draft has them drawn for the sigmas at which the sampler will ask (``noise_sigmas``: pairs of sigma and
    sigma_next), so that the sequence is the one that a plain run of the sampler draws. They have the dtype
    and the device of ``sigmas``.
    """

    def __init__(
        self, draw: NoiseSampler, noise_sigmas: Sequence[tuple[float, float]], sigmas: Tensor
    ) -> None:
        self._draw = draw
        self._noise_sigmas = torch.tensor(noise_sigmas, dtype=sigmas.dtype).to(
            sigmas.device, non_blocking=True
        )
        self._drawn = 0
        self._kept: dict[int, Tensor] = {}

    def __getitem__(self, position: int) -> Tensor:
        """The noise at a position, for a draft."""
        while self._drawn <= position:
            self._add(*self._noise_sigmas[self._drawn])
        return self._kept[position]

    def reader(self) -> NoiseSampler:
        """The noise sampler of the sampler itself."""
        position = 0

        def read(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            nonlocal position
            if self._drawn <= position:
                self._add(sigma, sigma_next)
            position += 1
            return self._kept[position - 1]

        return read

    def _add(self, sigma: Tensor, sigma_next: Tensor) -> None:
        self._kept[self._drawn] = self._draw(sigma, sigma_next)
        self._drawn += 1

    def forget(self, before: int) -> None:
        """Drop the noises that nobody will ask for again."""
        for index in [index for index in self._kept if index < before]:
            del self._kept[index]

    def __len__(self) -> int:
        return len(self._kept)
