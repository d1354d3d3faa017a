# SPDX-License-Identifier: GPL-3.0-or-later
"""What is trained, in which order and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .distribution import TrainingDistribution
from .errors import BadPlan, NoPrompts
from .stages import GuidanceStage, GuiderStage, ProgressiveStage, Stage, Visit

WARM_UP_UPDATES = 50
"""Until the full learning rate."""
DECAY_SHARE = 0.4
"""Of a stage's updates, in which the rate falls to 0."""
NO_PROMPTS = (
    "The list of prompts is empty. Expected one prompt a line, of the kind the student will be asked for."
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train. Raises BadPlan for what cannot be.

    updates: of stage one. step_updates: of each halving in stage two. first_steps and steps: N of the first
    and the last student of stage two (first_steps = steps 2^k); 0 for stage one alone. scales: lowest and
    highest g. batch: rows of an update.
    """

    updates: int = 2000
    scales: tuple[float, float] = (1.0, 8.0)
    batch: int = 4
    rate: float = 1e-3
    seed: int = 0
    rank: int = 16
    steps: int = 0
    first_steps: int = 8
    step_updates: int = 600

    def __post_init__(self) -> None:
        low, high = self.scales
        if not 0 <= low < high:
            raise BadPlan(
                f"The guidance range goes from {low:g} to {high:g}. Expected the lower end first, not below "
                "0, such as 1 to 8: exchange or correct the two."
            )
        for name in ("updates", "batch", "rank", "step_updates"):
            if getattr(self, name) < 1:
                raise BadPlan(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not 0 < self.rate < 1:
            raise BadPlan(
                f"The learning rate is {self.rate}; expected a number between 0 and 1, such as 0.001."
            )
        if self.steps and (
            self.steps < 1
            or self.first_steps % self.steps
            or not _power_of_two(self.first_steps // self.steps)
        ):
            raise BadPlan(
                f"Stage two goes from {self.first_steps} steps to {self.steps}; expected the first to be 1, "
                "2, 4, 8, ... times the last."
            )

    @property
    def students(self) -> list[int]:
        """N of each student of stage two, halving."""
        halvings = int(math.log2(self.first_steps // self.steps)) + 1 if self.steps else 0
        return [self.first_steps >> i for i in range(halvings)]


def _power_of_two(n: int) -> bool:
    return n >= 1 and n & (n - 1) == 0


@dataclass(frozen=True)
class PlannedStage:
    """A stage and how many updates it gets."""

    stage: Stage
    updates: int

    def rate_at(self, update: int, rate: float) -> float:
        """Warm-up, constant, linear decay to 0."""
        decay = max(1.0, DECAY_SHARE * self.updates)
        return rate * min(1.0, (update + 1) / WARM_UP_UPDATES, (self.updates - update) / decay)


def stages_of(
    plan: Plan,
    distribution: TrainingDistribution,
    sigmas: Callable[[int], Tensor],
    visit: Visit | None = None,
) -> list[PlannedStage]:
    """Stage one, then the halvings. sigmas(n): the n + 1 noise levels of n steps, of which every other one is
    those of n / 2. visit: the teacher's guider, where it is not plain CFG.

    The first student of stage two learns each of its steps from four of stage one's, the others from two.
    Raises NoPrompts.
    """
    if distribution.prompts < 1:
        raise NoPrompts(NO_PROMPTS)
    first = GuidanceStage(distribution) if visit is None else GuiderStage(distribution, visit)
    planned = [PlannedStage(first, plan.updates)]
    for i, n in enumerate(plan.students):
        fine = sigmas(n * (4 if i == 0 else 2))
        planned.append(PlannedStage(ProgressiveStage(distribution, fine, n), plan.step_updates))
    return planned
