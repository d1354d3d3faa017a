# SPDX-License-Identifier: GPL-3.0-or-later
"""Predictions in coordinates that change little along a trajectory.

A state is x = alpha x0 + sigma n. With data of standard deviation sigma_d, s = sqrt(alpha^2 sigma_d^2 +
sigma^2) and tan(phi) = sigma / (alpha sigma_d), every prediction of a model is one of

    D      the denoised x0,
    eps    the noise, (x - alpha D) / sigma,
    F      (cos(phi) x / s - D / sigma_d) / sin(phi), the preconditioned output of Karras et al. 2022 less its
    sign,

and x / s moves along phi with velocity F when D is exact: F is the trigonometric v of Salimans and Ho 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from ..common.alpha import alpha_ve

Basis = Literal["eps", "F"]
"""What is held fixed while a prediction is carried to another state."""


class Vector(Protocol):
    """What the formulas need: a tensor has it, and a combination of tensors."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, factor: float, /) -> Any: ...
    def __truediv__(self, divisor: float, /) -> Any: ...


V = TypeVar("V", bound=Vector)


@dataclass(frozen=True)
class Space:
    """How states are made of signal and noise: alpha(sigma), and the standard deviation of the data."""

    alpha: Callable[[float], float] = alpha_ve
    sigma_data: float = 1.0

    def scale(self, sigma: float) -> float:
        """s: the standard deviation of states at sigma."""
        return math.hypot(self.alpha(sigma) * self.sigma_data, sigma)

    def angle(self, sigma: float) -> float:
        """phi in [0, pi/2]: 0 where all is data, pi/2 where all is noise."""
        return math.atan2(sigma, self.alpha(sigma) * self.sigma_data)

    def gaussian_slope(self, sigma: float) -> float:
        """dD/dx of Gaussian data: alpha sigma_d^2 / s^2. Carrying D along x with it holds F fixed."""
        return self.alpha(sigma) * (self.sigma_data / self.scale(sigma)) ** 2

    def dD_dx(self, basis: Basis, sigma: float) -> float:
        """With eps or F held fixed. Where all is noise (alpha = 0), eps says nothing of D, and F is held."""
        alpha = self.alpha(sigma)
        return self.gaussian_slope(sigma) if basis == "F" or alpha == 0 else 1.0 / alpha

    def F_of(self, x: V, D: V, sigma: float) -> V:
        phi = self.angle(sigma)
        return (x * (math.cos(phi) / self.scale(sigma)) - D / self.sigma_data) / math.sin(phi)

    def D_of_F(self, x: V, F: V, sigma: float) -> V:
        """x cos(phi) sigma_d / s - F sigma_d sin(phi)."""
        return x * self.gaussian_slope(sigma) - F * (self.sigma_data * math.sin(self.angle(sigma)))

    def eps_of(self, x: V, D: V, sigma: float) -> V:
        return (x - D * self.alpha(sigma)) / sigma

    def D_of_eps(self, x: V, eps: V, sigma: float) -> V:
        return (x - eps * sigma) / self.alpha(sigma)
