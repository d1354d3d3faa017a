# SPDX-License-Identifier: GPL-3.0-or-later
"""alpha(sigma): how much signal a state x = alpha x0 + sigma n holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", float, Tensor)
Alpha = Callable[[S], S]
"""alpha of a noise level, or of each of a tensor of them."""


def alpha_ve(sigma: S) -> S:
    """1: x = x0 + sigma n, ComfyUI's space of eps, v and x0 models (variance exploding)."""
    return sigma**0


def alpha_flow(sigma: S) -> S:
    """1 - sigma: x = (1 - sigma) x0 + sigma n, ComfyUI's space of flow models."""
    return 1.0 - sigma


def is_flow(model_sampling: Any) -> bool:
    """Whether a model's states are (1 - sigma) x0 + sigma n, asked of its own ``model_sampling``."""
    sigma = torch.tensor([0.25])
    state = model_sampling.noise_scaling(sigma, torch.zeros(1), torch.ones(1))
    return math.isclose(float(state), float(alpha_flow(sigma)), rel_tol=1e-3)


def alpha_of(model_sampling: Any) -> Alpha:
    """:func:`alpha_flow` or :func:`alpha_ve`, whichever a model's states are made with."""
    return alpha_flow if is_flow(model_sampling) else alpha_ve
