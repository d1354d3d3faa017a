# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened in a drafted run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class ReportedCall:
    """One model call that a round made ready: how far the sampler arrived from it (None: it stood there, or
    never arrived); whether its prediction was used; whether that was interpolated instead of evaluated;
    the device that evaluated it, where there are several, and for how many rounds up to this one.
    """

    call: int
    deviation: float | None = None
    accepted: bool | None = None
    interpolated: bool = False
    device: str = ""
    rounds: int = 1


@dataclass
class Report:
    """For every round its model calls, in their order."""

    rounds: list[list[ReportedCall]] = field(default_factory=list)
    seconds: float = 0.0
    """From the first look at the graph to the picture."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Of devices, by name, relative to the fastest, where there are several."""
    fastest: str = ""
    call_s: float = 0.0
    """Seconds that a call takes on the fastest device; 0 where they are not known."""

    @property
    def calls(self) -> int:
        """That the sampler made."""
        return 1 + max(state.call for states in self.rounds for state in states)

    @property
    def numbers(self) -> dict[str, int | float]:
        """For programs."""
        return {
            "calls": self.calls,
            "rounds": len(self.rounds),
            "evaluations": self.evaluations,
            "skipped": self.interpolations,
            "dropped": self.rejections,
            "largest_deviation": self.largest_deviation,
            "seconds": self.seconds,
            "times_as_fast": self.times_as_fast,
        }

    @property
    def times_as_fast(self) -> float:
        """As the fastest device alone, estimated from its calls; 0 where these were not timed."""
        return self.calls * self.call_s / self.seconds if self.seconds > 0 else 0.0

    @property
    def evaluations(self) -> int:
        return sum(not each.interpolated for calls in self.rounds for each in calls)

    @property
    def interpolations(self) -> int:
        """Those that were used."""
        return sum(bool(each.interpolated and each.accepted) for calls in self.rounds for each in calls)

    @property
    def skips(self) -> int:
        """Interpolated predictions that were used, less those that were not, so far."""
        calls = [call for calls in self.rounds for call in calls if call.interpolated]
        return sum(-1 if call.accepted is False else 1 for call in calls)

    @property
    def rejections(self) -> int:
        return sum(each.accepted is False for calls in self.rounds for each in calls)

    @property
    def largest_deviation(self) -> float:
        """Of the drafts that were used."""
        return max((c.deviation or 0.0 for calls in self.rounds for c in calls if c.accepted), default=0.0)

    def settle(self, n: int, deviation: float, accepted: bool) -> None:
        """Enter what became of the newest draft of the n-th model call."""
        for calls in reversed(self.rounds):
            for i, each in enumerate(calls):
                if each.call == n and each.deviation is None:
                    calls[i] = replace(each, deviation=deviation, accepted=accepted)
                    return
        raise LookupError(f"no draft of call {n} is open")
