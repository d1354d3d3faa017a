# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a training goes, how long it still takes, and what of it is saved: in words."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import files
from ..errors import StudentError
from .training import LOSSES

REMEMBERED = 50
"""Updates whose mean time is the rate: a stage's are alike, those of the next may not be."""


class Pace:
    """Told of every update, says what is left. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=REMEMBERED + 1)

    def sentence(self, done: int, total: int) -> str | None:
        """To be asked once after each update: "12 of 60 updates, 0.8 s each, about 38 s left". None after the
        first, whose beginning nobody saw.
        """
        self._ends.append(self._clock())
        if len(self._ends) == 1:
            return None
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return f"{done} of {total} updates, {each:.2g} s each, about {duration(each * (total - done))} left"


def duration(seconds: float) -> str:
    """In the two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def saved(path: Path, total: int) -> str | None:
    """What there is to say of a training that was stopped; None where its file holds nothing of it."""
    try:
        tensors, _ = files.read_weights((path,))
    except StudentError:
        return None
    if LOSSES not in tensors:
        return None
    return (
        f"{path.name} is saved at {len(tensors[LOSSES])} of {total} updates: queue again with the same "
        "settings to go on."
    )


def described(running: Any) -> str | None:
    """:func:`saved` of a ``run.Running``."""
    return saved(running.job.path, running.training.total)
