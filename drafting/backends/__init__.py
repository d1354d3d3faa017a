# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the states of a round are evaluated. One file a backend; only these know about hardware.

``base`` is what they share: they look at what is in the graph, and check before they draft. A new backend is
a class with ``refusal``, ``make`` and ``evaluate`` in a file here, and its place in :data:`BACKENDS`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.messages import Say, inform
from ..errors import MainDeviceOnly, Undraftable
from ..speculation import State
from .base import Backend, Request
from .batch import Batch
from .cluster import Cluster
from .one_device import OneDevice
from .replicas import Replicas

BACKENDS: tuple[type[Backend], ...] = (Cluster, Replicas, Batch, OneDevice)
"""In order of preference."""


def choose_backend(request: Request) -> Backend:
    """The first that accepts what is in the graph. Raises :class:`Undraftable` where none does."""
    refusals: list[Undraftable] = []
    for kind in BACKENDS:
        if (refusal := kind.refusal(request)) is None:
            return kind.make(request)
        refusals.append(refusal)
    raise next((each for each in refusals if isinstance(each, MainDeviceOnly)), refusals[-1])


class RowsOnDevices:
    """D of rows [B, ...] that have nothing to do with one another, all at the first of sigma [B].

    A backend with several places takes a part of them at each; else they are one model call. One is chosen,
    and checked, for as long as the same model is asked.
    """

    def __init__(self, say: Say = inform) -> None:
        """say: told of devices that are left out, and why."""
        self._say = say
        self._model: Any = None
        self._backend: Backend | None = None

    def __call__(self, model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
        if model is not self._model:
            self._model, self._backend = model, self._choose(model, x[:1], sigma, extra_args)
        backend = self._backend
        if backend is None or backend.width < 2 or len(x) < 2:
            return model(x, sigma, **extra_args)
        try:
            backend.prepare(extra_args)
            states = [State(part, float(sigma[0])) for part in x.chunk(backend.width)]
            predictions = [prediction[0] for prediction in backend(states, extra_args)]
        except Undraftable as why:
            self._give_up(why)
            return model(x, sigma, **extra_args)
        for state in states[len(predictions) :]:
            predictions.append(model(state.x, state.sigmas, **extra_args))
        return torch.cat(predictions)

    def _choose(self, model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Backend | None:
        """With one state evaluated alone, against which the devices are checked."""
        try:
            backend = choose_backend(
                Request(model, extra_args["model_options"], warn=self._say, inform=self._say)
            )
            if backend.places < 2:
                return None
            backend([State(x, float(sigma[0]), sigma[:1])], extra_args)
            return backend
        except Undraftable as why:
            self._give_up(why)
            return None

    def _give_up(self, why: Undraftable) -> None:
        self._backend = None
        self._say(f"evaluated on the main device alone: {why}.")
