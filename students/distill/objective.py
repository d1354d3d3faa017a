# SPDX-License-Identifier: GPL-3.0-or-later
"""What students learn, in predictions of the denoised latent D(x, sigma); sections and equations of Meng et
al. 2023.
"""

from __future__ import annotations

from torch import Tensor

from ...common.steps import per_row


def guided(conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """The teacher's guided prediction (1 + w) D(x, c) - w D(x): section 3.1. w: [B]."""
    w = per_row(w, conditional)
    return (1 + w) * conditional - w * unconditional


def one_step_target(x: Tensor, sigma: Tensor, x_end: Tensor, sigma_end: Tensor) -> Tensor:
    """The D whose one deterministic step leads from x at sigma to x'' at sigma'': section 3.2 and algorithm
    2.

    x'' = D + (sigma'' / sigma)(x - D), solved for D. x'' is where several steps of the frozen student led. In
    x = x0 + sigma eps and, for flow models, in x = (1 - sigma) x0 + sigma eps. sigma, sigma_end: [B], sigma >
    sigma_end.
    """
    sigma, sigma_end = per_row(sigma, x), per_row(sigma_end, x)
    return x - sigma * (x - x_end) / (sigma - sigma_end)


def strongest(g: Tensor) -> Tensor:
    """w of the strongest signal, by which ``loss`` weighs a row. g: [B] or [B, signals] -> [B]."""
    return g.reshape(len(g), -1).amax(1) - 1


def loss(denoised: Tensor, target: Tensor, sigma: Tensor, w: Tensor, flow: bool) -> Tensor:
    """Mean of omega(sigma) ||D - D_target||^2 / (1 + w), omega = 1 / sigma^2, plus 1 unless ``flow``:
    equation 3, weighed. sigma, w: [B].

    omega is the paper's SNR + 1 for diffusion models, and makes it the error of the velocity for flow models,
    too. The error of a guided target grows with w: without 1 / (1 + w) weak guidance, which asks for the
    finest pictures, would count least.
    """
    omega = 1 / sigma.square() + (0 if flow else 1)
    error = per_row(omega.sqrt(), denoised) * (denoised - target)
    return (error.square() / per_row(1 + w, error)).mean()
