# SPDX-License-Identifier: GPL-3.0-or-later
"""What a profile says at each noise level: stability, amplification and local errors.

Curves are [T] in float64 over the levels of the linearised model. J = dv/dx = (I - dD/dx) / sigma is the
Jacobian of the velocity v = (x - D) / sigma.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linearized import TABLE_POINTS, LinearizedModel, interpolate
from .solvers import Solver

MIN_HISTORY_RATIO = 1 + 1e-6
"""sigma of a step before to that of the next: at the highest level there is no earlier one."""


def lipschitz(model: LinearizedModel) -> Tensor:
    """||J||_2, the mean over probes; 1 / sigma where the measured directions have no more."""
    k = model.responses.shape[-1]
    inside = torch.linalg.matrix_norm(torch.eye(k, dtype=torch.float64) - model.responses, ord=2)
    return inside.clamp(min=1).mean(1) / model.sigmas


def one_sided_lipschitz(model: LinearizedModel) -> Tensor:
    """The logarithmic norm of -J, in the probe where it is largest: (lambda_max(sym dD/dx) - 1) / sigma.

    No error within the measured directions grows faster than this, per unit of sigma on the way down; below 0
    all errors shrink.
    """
    H = model.responses
    return (torch.linalg.eigvalsh((H + H.mT) / 2)[..., -1] - 1).amax(1) / model.sigmas


def amplification(model: LinearizedModel) -> Tensor:
    """Phi(sigma) = ||d x(0) / d x(sigma)||: what an error of length 1 has become in the image, RMS over
    probes.
    """
    return _transfers(model)[0]


def worst_amplification(model: LinearizedModel) -> Tensor:
    """max over sigma' <= sigma of ||d x(sigma') / d x(sigma)|| / width(sigma'): the largest share of the
    width of states that an error of length 1 becomes on its way.
    """
    return _transfers(model)[1]


def _transfers(model: LinearizedModel) -> tuple[Tensor, Tensor]:
    """The variational equation d delta / d ln sigma = (I - dD/dx) delta, integrated from the end upwards by
    the exponential midpoint rule.
    """
    H, k = model.responses, model.responses.shape[-1]
    h = -model.sigmas.log().diff()
    middle = (H[1:] + H[:-1]) / 2 - torch.eye(k, dtype=torch.float64)
    factors = torch.linalg.matrix_exp(middle * h[:, None, None, None])
    T = H[-1]
    end, worst = [_rms_norm(T)], [torch.maximum(1 / model.widths[-1], _rms_norm(T) / model.widths[-1])]
    for i in range(TABLE_POINTS - 2, -1, -1):
        T = T @ factors[i]
        end.append(_rms_norm(T))
        worst.append(torch.maximum(1 / model.widths[i], worst[-1] * _rms_norm(factors[i])))
    return torch.stack(end).flip(0), torch.stack(worst).flip(0)


def _rms_norm(T: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(T, ord=2).square().mean().sqrt()


def curvature(model: LinearizedModel) -> Tensor:
    """||d^2 x / d sigma^2|| = ||dD/dsigma|| / sigma along the trajectories, RMS over probes."""
    (rate,) = torch.gradient(model.denoised, spacing=(model.sigmas,), dim=0)
    return rate.square().sum(-1).mean(-1).sqrt() / model.sigmas


def step_errors(model: LinearizedModel, solver: Solver, c: Tensor, c_next: Tensor, h: Tensor) -> Tensor:
    """The local errors [M, P, r] of steps from the exact states at c [M] to c_next [M].

    The history of a solver that has one is exact as well, at c - h, c - 2 h and so on, where h [M] > 0.
    """
    sigma = latest = model.sigma_of(c)
    history = []
    for n in range(1, solver.memory + 1):
        earlier = (c - n * h).clamp(min=0)
        latest = model.sigma_of(earlier).maximum(latest * MIN_HISTORY_RATIO)
        history.append((latest, interpolate(model.denoised, earlier)))
    landed, _ = solver.step(model, interpolate(model.states, c), sigma, model.sigma_of(c_next), history)
    return landed - interpolate(model.states, c_next)


def local_errors(model: LinearizedModel, solver: Solver, c: Tensor) -> Tensor:
    """The errors of single steps from every level of c [M] (rising) to every later one, and to 0 in the last
    column: [M, M + 1, P, r], 0 where there is no step.

    A solver with memory has made steps of the same length in c before.
    """
    M = len(c)
    i, j = torch.triu_indices(M, M, 1)
    errors = model.states.new_zeros(M, M + 1, *model.end.shape)
    errors[i, j] = step_errors(model, solver, c[i], c[j], c[j] - c[i])
    errors[:, M] = interpolate(model.denoised, c) - model.end
    return errors


def local_error(model: LinearizedModel, solver: Solver, steps: int = 12) -> Tensor:
    """The length of a solver's error in a step of 1 / steps in c from each level, RMS over probes."""
    c = torch.linspace(0, 1, TABLE_POINTS, dtype=torch.float64)
    start = c.clamp(max=1 - 0.25 / steps)  # the last steps have a length too
    errors = step_errors(model, solver, start, (c + 1 / steps).clamp(max=1), start - c + 1 / steps)
    return errors.square().sum(-1).mean(-1).sqrt()
