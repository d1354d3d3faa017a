# SPDX-License-Identifier: GPL-3.0-or-later
"""Muon for the hidden layers' matrices and convolutions, AdamW for the rest: fewer updates to the same loss
than AdamW alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
ADAM_RMS = 0.2
"""Root mean square of AdamW's updates at learning rate one, which Muon's are scaled to (Liu et al. 2025)."""


def orthogonalised(gradient: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of the gradient's singular value decomposition, by Newton-Schulz (Jordan et al. 2024), in
    fp32.

    ``torch.optim.Muon`` does this in bf16 and for matrices only; on CPUs without bf16 units that is 20 times
    slower.
    """
    a, b, c = NEWTON_SCHULZ
    X = gradient.flatten(1)
    tall = X.shape[0] > X.shape[1]
    X = X.T if tall else X
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(iterations):
        A = X @ X.T
        X = a * X + torch.addmm(A, A, A, beta=b, alpha=c) @ X
    return (X.T if tall else X).view_as(gradient)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with AdamW's update size and decoupled weight decay."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no line search, so no closure
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                update = orthogonalised(parameter.grad.lerp(momentum, MOMENTUM))
                rows, columns = parameter.flatten(1).shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * ADAM_RMS * max(rows, columns) ** 0.5)
