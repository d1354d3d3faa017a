# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU devices that count as slower ones: by a simulated clock, or by what is done around a call."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..drafting.report import Report


class SimulatedClock:
    """Stands still but where it is set forward; every thread, and so every device, has its own."""

    def __init__(self) -> None:
        self._now = defaultdict[int, float](float)

    def __call__(self) -> float:
        """Seconds."""
        return self._now[threading.get_ident()]

    def forward(self, seconds: float) -> None:
        self._now[threading.get_ident()] += seconds


def names(count: int) -> list[str]:
    """Of so many CPU devices."""
    return ["cpu", *(f"cpu:{i}" for i in range(1, count))]


@contextmanager
def at_each_call(model: Any, acts: Sequence[Callable[[Callable[[], Tensor]], Tensor]]) -> Iterator[None]:
    """An act around every model call of each device, in the order of the devices: it is given the call."""
    networks = [model.model, *(each.model for each in model.get_additional_models_with_key("multigpu"))]
    for network, act in zip(networks, acts, strict=True):
        network.apply_model = _acting(network.apply_model, act)
    try:
        yield
    finally:
        for network in networks:
            del network.apply_model


def _acting(apply: Callable[..., Tensor], act: Callable[[Callable[[], Tensor]], Tensor]) -> Callable:
    return lambda *given, **named: act(lambda: apply(*given, **named))


def lasting(clock: SimulatedClock, seconds: float) -> Callable[[Callable[[], Tensor]], Tensor]:
    """An act: the call takes so many seconds of the ``clock``."""

    def act(call: Callable[[], Tensor]) -> Tensor:
        clock.forward(seconds)
        return call()

    return act


def simulated_s(report: Report, seconds: Mapping[str, float]) -> float:
    """How long a reported picture takes on devices that need so many ``seconds`` for a call, by name.

    A round ends when the last of its states is there, and the far drafts that come with it. Nothing but model
    calls takes time.
    """
    now, starts = 0.0, list[float]()
    for i, calls in enumerate(report.rounds):
        started = now
        starts.append(started)
        busy = defaultdict[str, float](float)
        for call in calls:
            if not call.interpolated:
                begun = starts[i - call.rounds + 1] if call.rounds > 1 else started + busy[call.device]
                end = begun + seconds[call.device]
                busy[call.device] += seconds[call.device] if call.rounds == 1 else 0.0
                now = max(now, end)
    return now
