# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened in a drafted run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EvaluatedState:
    """One state of a round: its model call; how far the sampler arrived from it (None: it stood there, or
    never arrived); whether its prediction was used.
    """

    call: int
    deviation: float | None = None
    accepted: bool | None = None


@dataclass
class Report:
    """For every round its states, the first of which is where the sampler stood."""

    rounds: list[list[EvaluatedState]] = field(default_factory=list)

    @property
    def evaluations(self) -> int:
        return sum(len(states) for states in self.rounds)

    @property
    def rejections(self) -> int:
        return sum(state.accepted is False for states in self.rounds for state in states)

    @property
    def largest_deviation(self) -> float:
        """Of the drafts that were used."""
        return max((s.deviation or 0.0 for states in self.rounds for s in states if s.accepted), default=0.0)

    def settle(self, n: int, deviation: float, accepted: bool) -> None:
        """Enter what became of the newest draft of the n-th model call."""
        states = next(states for states in reversed(self.rounds) if states[0].call < n)
        states[n - states[0].call] = EvaluatedState(n, deviation, accepted)
