# SPDX-License-Identifier: GPL-3.0-or-later
"""What a profile says at each noise level: stability, amplification and local errors. All curves are [FINE],
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .replay import FINE, Replay, at
from .solvers import SOLVERS

FLOOR = 1e-3
"""Of a density's maximum: what is hardly measurable still gets points."""


def velocity_norm(replay: Replay) -> Tensor:
    """||J|| = ||I - dD/dx|| / sigma, the mean over probes; 1 / sigma outside of the measured directions."""
    k = replay.responses.shape[-1]
    inside = torch.linalg.matrix_norm(torch.eye(k, dtype=torch.float64) - replay.responses, ord=2)
    return inside.clamp(min=1).mean(1) / replay.sigmas


def growth(replay: Replay) -> Tensor:
    """The fastest rate, per unit of sigma on the way down, at which an error within the measured directions
    grows.

    (lambda_max of the symmetric part of dD/dx, less 1) / sigma, in the probe where it is largest; below 0 all
    errors shrink.
    """
    H = replay.responses
    return (torch.linalg.eigvalsh((H + H.mT) / 2)[..., -1] - 1).amax(1) / replay.sigmas


def amplification(replay: Replay) -> Tensor:
    """Phi: what an error made at a level has become at the end, ||d x(0) / d x(sigma)||, RMS over probes."""
    return _transfers(replay)[0]


def worst_amplification(replay: Replay) -> Tensor:
    """The largest part of the width of states, over all later levels, that an error of length 1 at a level
    becomes.
    """
    return _transfers(replay)[1]


def _transfers(replay: Replay) -> tuple[Tensor, Tensor]:
    """Tangents of the flow, d delta / d log sigma = (I - dD/dx) delta, carried to the end and, at their
    largest, on the way.
    """
    H, k = replay.responses, replay.responses.shape[-1]
    h = -replay.sigmas.log().diff()
    middle = (H[1:] + H[:-1]) / 2 - torch.eye(k, dtype=torch.float64)
    factors = torch.linalg.matrix_exp(middle * h[:, None, None, None])
    T = H[-1]
    end, worst = [_rms_norm(T)], [torch.maximum(1 / replay.widths[-1], _rms_norm(T) / replay.widths[-1])]
    for i in range(FINE - 2, -1, -1):
        T = T @ factors[i]
        end.append(_rms_norm(T))
        worst.append(torch.maximum(1 / replay.widths[i], worst[-1] * _rms_norm(factors[i])))
    return torch.stack(end).flip(0), torch.stack(worst).flip(0)


def _rms_norm(T: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(T, ord=2).square().mean().sqrt()


def curvature(replay: Replay) -> Tensor:
    """||x''|| = ||dD/dsigma|| / sigma along the trajectories, RMS over probes."""
    (rate,) = torch.gradient(replay.denoised, spacing=(replay.sigmas,), dim=0)
    return rate.square().sum(-1).mean(-1).sqrt() / replay.sigmas


@dataclass(frozen=True)
class LocalErrors:
    """Of one step each from the exact state: ``signed`` [I, J, P, r] from level i to level j, 0 where j is
    not below i.
    """

    c: Tensor
    signed: Tensor


def local_errors(replay: Replay, solver: str, c: Tensor) -> LocalErrors:
    """Errors of every step between levels c [M] (rising) and from each of them to 0, which is the last
    column: [M, M + 1, P, r].

    A solver with memory has made a step of the same length before.
    """
    M = len(c)
    i, j = torch.triu_indices(M, M, 1)
    now, then = replay.sigma_of(c[i]), replay.sigma_of(c[j])
    before = (2 * c[i] - c[j]).clamp(min=0)
    memory = None
    if solver == "dpmpp_2m":
        memory = (replay.sigma_of(before).maximum(now * (1 + 1e-6)), at(replay.denoised, before))
    landed, _ = SOLVERS[solver].step(replay, at(replay.states, c[i]), now, then, memory)
    signed = replay.states.new_zeros(M, M + 1, *replay.end.shape)
    signed[i, j] = landed - at(replay.states, c[j])
    signed[:, M] = at(replay.denoised, c) - replay.end
    return LocalErrors(c, signed)


def local_error(replay: Replay, solver: str, steps: int = 12) -> Tensor:
    """Length of a solver's error in one step of 1/steps of c, RMS over probes: the curve of a plot, and of
    densities.
    """
    c = torch.linspace(0, 1, FINE, dtype=torch.float64)
    then, before = (c + 1 / steps).clamp(max=1), (c - 1 / steps).clamp(min=0)
    now = c.clamp(max=1 - 0.25 / steps)
    memory = None
    if solver == "dpmpp_2m":
        memory = (
            replay.sigma_of(before).maximum(replay.sigma_of(now) * (1 + 1e-6)),
            at(replay.denoised, before),
        )
    landed, _ = SOLVERS[solver].step(
        replay, at(replay.states, now), replay.sigma_of(now), replay.sigma_of(then), memory
    )
    return (landed - at(replay.states, then)).square().sum(-1).mean(-1).sqrt()
