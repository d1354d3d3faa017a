# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the states of a round are evaluated. One file a backend; only these know about hardware.

``base`` is what they share: they look at what is in the graph, and check before they draft. A new backend is
a class with ``refusal``, ``make`` and ``evaluate`` in a file here, and its place in :data:`BACKENDS`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import MainDeviceOnly, Undraftable
from ..speculation import State
from .base import Backend, Request
from .batch import Batch
from .replicas import Replicas

BACKENDS: tuple[type[Backend], ...] = (Replicas, Batch)
"""In order of preference."""


def choose_backend(request: Request) -> Backend:
    """The first that accepts what is in the graph. Raises :class:`Undraftable` where none does."""
    refusals: list[Undraftable] = []
    for kind in BACKENDS:
        if (refusal := kind.refusal(request)) is None:
            return kind.make(request)
        refusals.append(refusal)
    raise next((each for each in refusals if isinstance(each, MainDeviceOnly)), refusals[-1])


def predict_rows(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """D of rows [B, ...] that have nothing to do with one another, all at the first of sigma [B].

    A backend with several places takes a part of them at each; else they are one model call.
    """
    try:
        backend = choose_backend(Request(model, extra_args["model_options"]))
    except Undraftable:
        return model(x, sigma, **extra_args)
    if backend.places < 2:
        return model(x, sigma, **extra_args)
    states = [State(part, float(sigma[0])) for part in x.chunk(backend.places)]
    parts = backend.evaluate(states, extra_args)
    return torch.cat([part[0] for part in parts])
