# SPDX-License-Identifier: GPL-3.0-or-later
"""A measured model to first order about its own trajectories: any solver on any grid, at no model call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from ..common.alpha import alpha_flow, alpha_ve
from .profile import Profile, coordinate, response_levels
from .solvers import DPMPP_2M

TABLE_POINTS = 512
"""Noise levels of the tables."""


@dataclass(frozen=True)
class LinearizedModel:
    """D(x, sigma) = D_ref(sigma) + dD/dx (x - x_ref(sigma)), tabled evenly in a coordinate c: 0 at the first
    measured level, 1 at the last. T = TABLE_POINTS levels, P probes of r dimensions, dD/dx in the first k.
    """

    sigmas: Tensor
    """[T], falling."""
    states: Tensor
    """x_ref [T, P, r]."""
    denoised: Tensor
    """D_ref [T, P, r]."""
    responses: Tensor
    """dD/dx [T, P, k, k]."""
    widths: Tensor
    """[T], the RMS length of states: the distance beyond which a state belongs to another image."""
    end: Tensor
    """[P, r], the images."""

    def sigma_of(self, c: Tensor) -> Tensor:
        """sigma at c in [0, 1], any shape."""
        return interpolate(self.sigmas.log(), c).exp()

    def c_of(self, sigma: Tensor) -> Tensor:
        """c of sigma > 0, any shape, clipped to what was measured."""
        rising = self.sigmas.log().flip(0).numpy()
        return torch.from_numpy(
            1 - np.interp(sigma.double().log().numpy(), rising, np.linspace(0, 1, TABLE_POINTS))
        )

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x [G, P, r], sigma [G])."""
        c, k = self.c_of(sigma), self.responses.shape[-1]
        away = (x - interpolate(self.states, c))[..., :k]
        D = interpolate(self.denoised, c)
        return torch.cat(
            [D[..., :k] + torch.einsum("gpij,gpj->gpi", interpolate(self.responses, c), away), D[..., k:]],
            dim=-1,
        )

    def deviation(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(x - x_ref) / width of states [G, P, r] at sigma [G]."""
        c = self.c_of(sigma)
        return (x - interpolate(self.states, c)) / interpolate(self.widths, c)[:, None, None]


def interpolate(table: Tensor, c: Tensor) -> Tensor:
    """Straight lines between the entries of a table [T, ...] even in c in [0, 1]: [*c.shape, ...]."""
    place = c * (len(table) - 1)
    i = place.long().clamp(0, len(table) - 2)
    part = (place - i).reshape(c.shape + (1,) * (table.ndim - 1))
    return table[i] + part * (table[i + 1] - table[i])


def linearize(profile: Profile) -> LinearizedModel:
    """Tables of a profile: cubic splines through D and v = (x - D) / sigma, straight lines between the dD/dx.

    Widths are sqrt((alpha R)^2 + sigma^2), R the RMS length of the images.
    """
    levels = coordinate(profile.sigmas, profile.flow)
    c = ((levels - levels[0]) / (levels[-1] - levels[0])).numpy()
    fine = np.linspace(0, 1, TABLE_POINTS)
    spline = torch.from_numpy(CubicSpline(c, np.eye(len(c)))(fine))
    some = response_levels(len(c))
    lines = torch.from_numpy(np.stack([np.interp(fine, c[some], row) for row in np.eye(len(some))], axis=1))
    sigmas = torch.from_numpy(CubicSpline(c, profile.sigmas.log().numpy())(fine)).exp()
    v = (profile.states - profile.denoised) / profile.sigmas[:, None]
    denoised = torch.einsum("fl,plr->fpr", spline, profile.denoised)
    states = denoised + sigmas[:, None, None] * torch.einsum("fl,plr->fpr", spline, v)
    responses = torch.einsum("fl,plij->fpij", lines, profile.responses)
    alpha = (alpha_flow if profile.flow else alpha_ve)(sigmas)
    widths = torch.hypot(alpha * profile.image_length, sigmas)
    return _along_its_solution(LinearizedModel(sigmas, states, denoised, responses, widths, states[-1]))


def _along_its_solution(measured: LinearizedModel) -> LinearizedModel:
    """The same D(x, sigma), tabled along its own solution.

    The measured states hold the errors of the steps between levels, above all of the first, which is Euler's;
    as a reference they would count as right, and grids would repeat them. The solution of the measured field
    is free of them.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        D = measured(x, sigma)
        seen.append((x[0], D[0]))
        return D

    every_level = torch.cat([measured.sigmas, measured.sigmas.new_zeros(1)])[None]
    end = DPMPP_2M.solve(model, measured.states[:1], every_level)[0]
    states, denoised = (torch.stack(table) for table in zip(*seen, strict=True))
    return replace(measured, states=states, denoised=denoised, end=end)
