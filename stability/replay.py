# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile run as if it were the model: any grid, any number of times, for nothing.

Near the measured trajectories D(x, sigma) = D_ref(sigma) + dD/dx (x - x_ref(sigma)). Solvers run in it on
many grids at once; their errors contain local errors and their measured amplification, as they do in the
model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from .profile import Profile, coordinate, response_levels
from .solvers import solve

FINE = 512
"""Entries of the tables."""


@dataclass(frozen=True)
class Replay:
    """Tables even in a coordinate c, 0 at the first measured level and 1 at the last.

    sigmas: [FINE]; states x_ref and denoised D_ref: [FINE, P, r]; responses dD/dx in the first k dimensions:
    [FINE, P, k, k];
    widths: [FINE], the distance over which states differ at sigma; end: [P, r], where the trajectories end.
    """

    sigmas: Tensor
    states: Tensor
    denoised: Tensor
    responses: Tensor
    widths: Tensor
    end: Tensor

    def sigma_of(self, c: Tensor) -> Tensor:
        """sigma at c in [0, 1], any shape."""
        return at(self.sigmas.log(), c).exp()

    def c_of(self, sigma: Tensor) -> Tensor:
        """c of sigma > 0, any shape, clipped to what was measured."""
        table = self.sigmas.log().flip(0)
        log = sigma.double().log().clamp(float(table[0]), float(table[-1])).contiguous()
        i = torch.searchsorted(table, log).clamp(1, FINE - 1)
        place = i - 1 + (log - table[i - 1]) / (table[i] - table[i - 1])
        return 1 - place / (FINE - 1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x [G, P, r], sigma [G])."""
        c, k = self.c_of(sigma), self.responses.shape[-1]
        away = (x - at(self.states, c))[..., :k]
        D = at(self.denoised, c)
        return torch.cat(
            [D[..., :k] + torch.einsum("gpij,gpj->gpi", at(self.responses, c), away), D[..., k:]], dim=-1
        )

    def deviation(self, x: Tensor, sigma: Tensor) -> Tensor:
        """(x - x_ref) / width: how far states [G, P, r] at sigma [G] are from where they should be, beside
        how far states differ.
        """
        c = self.c_of(sigma)
        return (x - at(self.states, c)) / at(self.widths, c)[:, None, None]


def at(table: Tensor, c: Tensor) -> Tensor:
    """A table [FINE, ...] between its entries: [G, ...] for c [G]."""
    place = c * (FINE - 1)
    i = place.long().clamp(0, FINE - 2)
    part = (place - i).reshape(c.shape + (1,) * (table.ndim - 1))
    return table[i] + part * (table[i + 1] - table[i])


def replay(profile: Profile) -> Replay:
    """Tables of a profile: cubic splines through D and v = (x - D) / sigma, straight lines between the dD/dx.

    A sampler's state that is off by less than width = sqrt((alpha R)^2 + sigma^2), R the RMS length of
    images, still belongs to some image. The measured states contain the errors of the steps between levels,
    above all of the first, which would count as right; so the tables follow the solution of what was
    measured, which is free of them.
    """
    levels = coordinate(profile.sigmas, profile.flow)
    c = ((levels - levels[0]) / (levels[-1] - levels[0])).numpy()
    fine = np.linspace(0, 1, FINE)
    spline = torch.from_numpy(CubicSpline(c, np.eye(len(c)))(fine))
    some = response_levels(len(c))
    lines = torch.from_numpy(np.stack([np.interp(fine, c[some], row) for row in np.eye(len(some))], axis=1))
    sigmas = torch.from_numpy(CubicSpline(c, profile.sigmas.log().numpy())(fine)).exp()
    v = (profile.states - profile.denoised) / profile.sigmas[:, None]
    denoised = torch.einsum("fl,plr->fpr", spline, profile.denoised)
    states = denoised + sigmas[:, None, None] * torch.einsum("fl,plr->fpr", spline, v)
    responses = torch.einsum("fl,plij->fpij", lines, profile.responses)
    signal = 1 - sigmas if profile.flow else torch.ones_like(sigmas)
    widths = torch.hypot(signal * profile.image_length, sigmas)
    return _along_its_solution(Replay(sigmas, states, denoised, responses, widths, states[-1]))


def _along_its_solution(tables: Replay) -> Replay:
    """The same D(x, sigma), tabled along the trajectories that it has itself."""
    seen: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        D = tables(x, sigma)
        seen.append((x[0], D[0]))
        return D

    every_level = torch.cat([tables.sigmas, tables.sigmas.new_zeros(1)])[None]
    end = solve("dpmpp_2m", model, tables.states[:1], every_level)[0]
    states, denoised = (torch.stack(table) for table in zip(*seen, strict=True))
    return replace(tables, states=states, denoised=denoised, end=end)
