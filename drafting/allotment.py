# SPDX-License-Identifier: GPL-3.0-or-later
"""Which device evaluates which states of a round, so that a picture ends soonest: from speeds alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

VERIFIED_USE = 0.67
"""Share of verified drafts one call ahead that are near enough; of those d calls ahead the d-th power.
The embedded teacher uses 1.7 states of two, 2.0 of three, 2.3 of four (``bench devices``).
"""
FAR_USE = 0.45
"""The same of drafts that come back in a later round, whose calls are made meanwhile: of those two calls
ahead it uses a fifth beyond what skipping alone gives.
"""
SKIPPING = 1.1
"""Calls that a round of one state answers where calls may be skipped (``bench one_device``)."""
LEAST_GAIN = 0.03
"""A device whose far drafts make the picture faster by less than this part evaluates none."""
MOST_CALLS = 4
"""One after the other on one device in a round."""
SLACK = 1e-6
DIGITS = 9
"""Speeds and gains are equal up to here: the unit of speeds must not choose among equals."""


@dataclass(frozen=True)
class Far:
    """A device whose drafts come back with a later round: after so many rounds, each for the call so far
    ahead of where the sampler stands when it begins.
    """

    device: int
    rounds: int
    ahead: int


@dataclass(frozen=True)
class Allotment:
    """near: the device of each state of a round, the one needed soonest first. length: of a round, in calls
    of the fastest device. gain: how many times as fast as that one alone, as far as foreseen.
    """

    near: tuple[int, ...]
    far: tuple[Far, ...] = ()
    length: float = 1.0
    gain: float = field(default=1.0, compare=False)

    @property
    def used(self) -> frozenset[int]:
        """Devices that evaluate anything."""
        return frozenset(self.near) | {each.device for each in self.far}


def speed_class(ratio: float) -> float:
    """The power of sqrt 2 nearest to a ratio of speeds > 0: equal devices are those within 19 %."""
    return 2.0 ** (round(2 * math.log2(ratio)) / 2)


def calls_a_round(width: int, use: float) -> float:
    """Model calls that a round of so many states answers, on the average: each draft is used where all
    before it are.
    """
    return float(width) if use >= 1 else (1 - use**width) / (1 - use)


def allot(speeds: Sequence[float], *, width: int = 0, use: float = 1.0, far: bool = False) -> Allotment:
    """The allotment of largest gain; of equal ones the shortest round.

    speeds: of the devices, in any unit. width: the most states at a time, 0 for any; equal devices take so
    many in turn. use: share of drafts one call ahead that are used, 1 where all are. far: whether drafts may
    come back in a later round, and a round of one state may skip a call.
    """
    fastest = max(speeds)
    relative = [round(speed / fastest, DIGITS) for speed in speeds]
    if min(relative) == 1.0:
        near = tuple(i % len(speeds) for i in range(width or len(speeds)))
        length = float(math.ceil(len(near) / len(speeds)))
        return Allotment(near, (), length, calls_a_round(len(near), use) / length)
    alone = SKIPPING if far else 1.0
    lengths = {round(calls / speed, DIGITS) for speed in relative for calls in range(1, MOST_CALLS + 1)}
    candidates = []
    for length in sorted(lengths):
        near = _near(relative, length, width)
        length = max(near.count(device) / relative[device] for device in near)
        answered = calls_a_round(len(near), use) if len(near) > 1 else alone
        candidate = Allotment(near, (), length, answered / length / alone)
        candidates.append(_with_far(candidate, relative, width, alone) if far else candidate)
    return max(candidates, key=lambda each: round(each.gain, DIGITS))


def _near(speeds: Sequence[float], length: float, width: int) -> tuple[int, ...]:
    """Whoever ends a call within a round of this length takes part, as often as it does."""
    ends = sorted(
        (round(calls / speed, DIGITS), device)
        for device, speed in enumerate(speeds)
        for calls in range(1, int(length * speed + SLACK) + 1)
    )
    return tuple(device for _, device in ends[: width or None])


def _with_far(round_: Allotment, speeds: Sequence[float], width: int, alone: float) -> Allotment:
    """With far drafts on the devices that a round leaves free, where these pay."""
    free = sorted(set(range(len(speeds))) - set(round_.near), key=lambda device: (-speeds[device], device))
    gain, chosen = round_.gain, list[Far]()
    for device in free:
        rounds = math.ceil(1 / (speeds[device] * round_.length) - SLACK)
        ahead = len(round_.near) + int((rounds - 1) * gain * alone * round_.length)
        more = FAR_USE**ahead / rounds / round_.length / alone
        room = not width or len(round_.near) + len(chosen) < width
        if room and rounds > 1 and more >= LEAST_GAIN * gain:
            chosen.append(Far(device, rounds, ahead))
            gain += more
    return replace(round_, far=tuple(chosen), gain=gain)
