# SPDX-License-Identifier: GPL-3.0-or-later
"""A seed's noise turned towards another's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[dict[str, Any], int], Any]
"""(LATENT, seed) -> what core draws for it: a tensor, or a nested one of several parts."""


def spun(one: Tensor, other: Tensor, angles: list[float]) -> Tensor:
    """cos(theta) n + sin(theta) n', one row for each angle theta in radians, of noises [1, ...].

    Of two independent Gaussian noises this is Gaussian noise again, of variance 1, on the great circle that
    leads from n at 0 to n' at pi / 2.
    """
    return torch.cat([math.cos(angle) * one + math.sin(angle) * other for angle in angles])


@dataclass(frozen=True)
class SpinNoise:
    """A NOISE: that of ``seed``, turned by ``degrees`` towards that of ``other_seed``.

    Of a batch every row starts from the noise that a single picture of the seed has, and the rows turn
    evenly, from 0 to ``degrees``; a single row is turned all the way.
    """

    seed: int
    other_seed: int
    degrees: float
    draw: Draw

    def angles(self, rows: int) -> list[float]:
        """In radians."""
        whole = math.radians(self.degrees)
        return [whole * i / (rows - 1) for i in range(rows)] if rows > 1 else [whole]

    def generate_noise(self, input_latent: dict[str, Any]) -> Any:
        """Noise for LATENT's ``samples`` [B, ...], as NOISEs of core give it."""
        samples = input_latent["samples"]
        first = samples.unbind() if samples.is_nested else [samples]
        angles = self.angles(len(first[0]))
        single = {
            "samples": type(samples)([part[:1] for part in first]) if samples.is_nested else samples[:1]
        }
        one, other = (self.draw(single, seed) for seed in (self.seed, self.other_seed))
        if not samples.is_nested:
            return spun(one, other, angles)
        parts = zip(one.unbind(), other.unbind(), strict=True)
        return type(samples)([spun(a, b, angles) for a, b in parts])
