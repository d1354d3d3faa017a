# SPDX-License-Identifier: GPL-3.0-or-later
"""A state a device: core's replicas of the model, in core's threads."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..speculation import State
from .base import CLONES, THREAD_POOL, Backend, Request

log = logging.getLogger("dizzydiff")


class Replicas(Backend):
    """One prediction of the whole guider per device; the first state on the model's own.

    Core's per-device path is used with a single device named: it moves conditioning, takes the device's
    ControlNets and brings the prediction back. A device that fails is left out from then on and its states
    are evaluated here.
    """

    def __init__(self, request: Request, width: int) -> None:
        super().__init__(request, width)
        self._clones, self._pool = request.options[CLONES], request.options[THREAD_POOL]
        self._main, *self._others = self._clones

    @classmethod
    def refusal(cls, request: Request) -> str:
        clones, pool = request.options.get(CLONES), request.options.get(THREAD_POOL)
        several = clones and pool is not None and len(clones) > 1
        return "" if several else "there is one device"

    @classmethod
    def make(cls, request: Request) -> Replicas:
        return cls(request, request.states_a_round or len(request.options[CLONES]))

    @property
    def places(self) -> int:  # type: ignore[override]
        return 1 + len(self._others)

    def __str__(self) -> str:
        return ", ".join(str(place) for place in (self._main, *self._others))

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        places = [self._main, *self._others]
        shares = {place: list(range(i, len(states), len(places))) for i, place in enumerate(places)}
        busy = [place for place in self._others if shares[place]]
        for place in busy:
            self._pool.submit(place, self._share, place, [states[i] for i in shares[place]], arguments)
        predictions: dict[int, Tensor] = {}
        try:
            for i in shares[self._main]:
                predictions[i] = super().evaluate([states[i]], arguments)[0]
        finally:
            results = {place: self._pool.get_result(place) for place in busy}
        for place, (result, error) in results.items():
            if error is None:
                predictions.update(zip(shares[place], result, strict=True))
            elif not isinstance(error, Exception):
                raise error
            else:
                self._drop(place, error)
                for i in shares[place]:
                    predictions[i] = super().evaluate([states[i]], arguments)[0]
        return [predictions[i] for i in range(len(states))]

    def _share(self, place: torch.device, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        """What one worker does: each thread has its own inference mode and its own options."""
        with torch.inference_mode():
            clones = {place: self._clones[place]}
            rows = [(x, x.new_full([x.shape[0]], sigma)) for x, sigma in states]
            return [
                self.predict(self.model, x, sigma, arguments, multigpu_clones=clones) for x, sigma in rows
            ]

    def _drop(self, place: torch.device, error: Exception) -> None:
        self.width = max(1, self.width * len(self._others) // (1 + len(self._others)))
        self._others.remove(place)
        log.warning(
            "DizzyDiff: %s failed (%s: %s); its states are evaluated on %s and it is left out for the rest "
            "of this image.",
            place,
            type(error).__name__,
            error,
            self._main,
        )
