# SPDX-License-Identifier: GPL-3.0-or-later
"""Predictions in coordinates that change little along a trajectory.

A state is x = alpha x0 + sigma n. With data of standard deviation sigma_d, s = sqrt(alpha^2 sigma_d^2 +
sigma^2) and tan(phi) = sigma / (alpha sigma_d), every prediction of a model is one of

    D      the denoised x0,
    eps    the noise, (x - alpha D) / sigma,
    F      the preconditioned output of Karras et al. 2022, (cos(phi) x / s - D / sigma_d) / sin(phi),

and x / s moves along phi with velocity -F when D is exact: F is the trigonometric v of Salimans and Ho 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def unit_signal(sigma: float) -> float:
    """alpha = 1: x = x0 + sigma n, ComfyUI's space of eps and v models."""
    return 1.0


def flow_signal(sigma: float) -> float:
    """alpha = 1 - sigma: x = (1 - sigma) x0 + sigma n, ComfyUI's space of flow models."""
    return 1.0 - sigma


@dataclass(frozen=True)
class Space:
    """How states are made of signal and noise: alpha(sigma), and the standard deviation of the data."""

    signal: Callable[[float], float] = unit_signal
    sigma_data: float = 1.0

    def scale(self, sigma: float) -> float:
        """s: the standard deviation of states at sigma."""
        return math.hypot(self.signal(sigma) * self.sigma_data, sigma)

    def angle(self, sigma: float) -> float:
        """phi in [0, pi/2]: 0 where all is data, pi/2 where all is noise."""
        return math.atan2(sigma, self.signal(sigma) * self.sigma_data)

    def gain(self, sigma: float) -> float:
        """dD/dx of Gaussian data: alpha sigma_d^2 / s^2. Carrying a prediction along x with it holds F
        fixed.
        """
        return self.signal(sigma) * (self.sigma_data / self.scale(sigma)) ** 2

    def F_of(self, x: Tensor, D: Tensor, sigma: float) -> Tensor:
        phi = self.angle(sigma)
        return (x * (math.cos(phi) / self.scale(sigma)) - D / self.sigma_data) / math.sin(phi)

    def D_of_F(self, x: Tensor, F: Tensor, sigma: float) -> Tensor:
        phi = self.angle(sigma)
        return x * self.gain(sigma) - F * (self.sigma_data * math.sin(phi))

    def eps_of(self, x: Tensor, D: Tensor, sigma: float) -> Tensor:
        return (x - self.signal(sigma) * D) / sigma

    def D_of_eps(self, x: Tensor, eps: Tensor, sigma: float) -> Tensor:
        return (x - sigma * eps) / self.signal(sigma)
