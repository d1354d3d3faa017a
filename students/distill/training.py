# SPDX-License-Identifier: GPL-3.0-or-later
"""The training loop of all stages: the same result in one go or in parts, since every random number follows
from (seed, stage, update).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import objective
from .errors import BadPlan, Diverged, NoPrompts, OtherTraining
from .states import Batch, FewerSteps, Guidance, Network, Round, Stage, World

BETAS, CLIP, WARM_UP, DECAY = (0.9, 0.99), 1.0, 50, 0.4
"""Adam's; the largest norm of a gradient; updates until the full learning rate; the share of a stage's
updates in which it falls to 0.
"""
REUSE = 3
"""How often a state is learned from, on average."""
KEPT_ROUNDS, KEPT_BORDERS = 4, 32
"""A batch is drawn from the last rounds: four, more where a round has few states."""


class Student(Network, Protocol):
    """A network whose parameters are trained by name."""

    parameters: Mapping[str, nn.Parameter]

    def remember(self, parameters: Mapping[str, Tensor]) -> None:
        """Make these the parameters that ``previous`` answers with."""
        ...


@dataclass(frozen=True)
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
                f"0, such as 1 to 8: "
                "exchange or correct the two."
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
                f"2, 4, 8, ... times "
                "the last."
            )

    @property
    def students(self) -> list[int]:
        """N of each student of stage two, halving."""
        halvings = int(math.log2(self.first_steps // self.steps)) + 1 if self.steps else 0
        return [self.first_steps >> i for i in range(halvings)]


def _power_of_two(n: int) -> bool:
    return n >= 1 and n & (n - 1) == 0


@dataclass(frozen=True)
class Planned:
    """A stage and how many updates it gets."""

    stage: Stage
    updates: int

    def rate_at(self, update: int, rate: float) -> float:
        """Warm-up, constant, linear decay to 0."""
        return rate * min(
            1.0, (update + 1) / WARM_UP, (self.updates - update) / max(1.0, DECAY * self.updates)
        )


def stages_of(plan: Plan, world: World, sigmas: Callable[[int], Tensor]) -> list[Planned]:
    """Stage one, then the halvings. sigmas(n): the n + 1 noise levels of n steps, of which every other one is
    those of n / 2.

    The first student of stage two learns each of its steps from four of stage one's, the others from two.
    Raises NoPrompts.
    """
    if world.prompts < 1:
        raise NoPrompts(
            "The list of prompts is empty. Expected one prompt a line, of the kind the student will be "
            "asked for."
        )
    planned = [Planned(Guidance(world), plan.updates)]
    for i, n in enumerate(plan.students):
        planned.append(Planned(FewerSteps(world, sigmas(n * (4 if i == 0 else 2)), n), plan.step_updates))
    return planned


@dataclass
class Progress:
    """Where a training is: the stage, updates done in it, and the loss of every update."""

    stage: int = 0
    update: int = 0
    losses: list[float] = field(default_factory=list)


OnUpdate = Callable[[Progress], None]
"""Called after each update. What it raises ends the training, in a state that can be saved and resumed."""


class Training:
    """A student in training. Raises Diverged, and leaves the parameters as they were, where the loss is not
    finite.
    """

    def __init__(self, student: Student, stages: Sequence[Planned], plan: Plan) -> None:
        self.student, self.stages, self.plan = student, stages, plan
        self.progress = Progress()
        self.before: dict[str, Tensor] = {}
        self._start_stage()

    @property
    def finished(self) -> bool:
        return self.progress.stage == len(self.stages)

    @property
    def total(self) -> int:
        return sum(planned.updates for planned in self.stages)

    def run(self, on_update: OnUpdate = lambda progress: None) -> None:
        """Train to the end of the last stage."""
        while not self.finished:
            planned = self.stages[self.progress.stage]
            while self.progress.update < planned.updates:
                self._update(planned)
                on_update(self.progress)
            self.progress.stage, self.progress.update = self.progress.stage + 1, 0
            self._start_stage()

    def _start_stage(self) -> None:
        self.rounds: dict[int, Round] = {}
        self.optimiser = torch.optim.AdamW(
            self.student.parameters.values(), self.plan.rate, BETAS, weight_decay=0.0
        )
        if self.progress.stage:
            self._remember(
                {name: parameter.detach().clone() for name, parameter in self.student.parameters.items()}
            )

    def _remember(self, parameters: dict[str, Tensor]) -> None:
        self.before = parameters
        self.student.remember(parameters)

    def _generator(self, kind: int, index: int) -> torch.Generator:
        number = ((self.plan.seed * 1_000_003 + self.progress.stage) * 2 + kind) * 10_000_019 + index
        return torch.Generator().manual_seed(number % 2**63)

    def _batch(self, stage: Stage) -> Batch:
        """Rows of the last rounds, which are made again where a resumed training lacks them."""
        generator = self._generator(0, self.progress.update)
        newest = self.progress.update // (REUSE * stage.steps)
        oldest = max(0, newest + 1 - max(KEPT_ROUNDS, KEPT_BORDERS // stage.steps))
        self.rounds = {
            n: self.rounds.get(n) or stage.round(self.student, self.plan.batch, self._generator(1, n))
            for n in range(oldest, newest + 1)
        }
        rounds = list(self.rounds.values())
        numbers = torch.randint(sum(map(len, rounds)), (self.plan.batch,), generator=generator)
        drawn = []
        for each in rounds:
            inside = numbers[(numbers >= 0) & (numbers < len(each))]
            drawn.append(each.batch(inside, generator))
            numbers = numbers - len(each)
        return Batch(
            *(torch.cat([getattr(batch, name) for batch in drawn]) for name in Batch.__dataclass_fields__)
        )

    def _update(self, planned: Planned) -> None:
        batch = self._batch(planned.stage)
        denoised = self.student.student(batch.x, batch.sigma, batch.prompt, batch.g)
        loss = objective.loss(
            denoised, batch.target.to(denoised), batch.sigma, batch.g - 1, planned.stage.world.flow
        )
        self._check(loss, "loss")
        loss.backward()
        self._check(nn.utils.clip_grad_norm_(self.student.parameters.values(), CLIP), "gradient")
        self.optimiser.param_groups[0]["lr"] = planned.rate_at(self.progress.update, self.plan.rate)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.progress.update += 1
        self.progress.losses.append(loss.item())

    def _check(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value):
            self.optimiser.zero_grad(set_to_none=True)
            stage = self.stages[self.progress.stage].stage.name
            raise Diverged(
                f"The {what} became {value.item()} at update {self.progress.update + 1} of stage {stage!r}. "
                f"The state before "
                "that update is kept. Expected finite numbers: lower the learning rate, or train a model in "
                "bf16 or fp32."
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers from which ``resume`` goes on; the tensors of a finished training are the
        student's alone.
        """
        tensors = {name: parameter.detach() for name, parameter in self.student.parameters.items()}
        tensors["losses"] = torch.tensor(self.progress.losses)
        if not self.finished:
            tensors |= {f"previous.{name}": value for name, value in self.before.items()}
            for name, parameter in self.student.parameters.items():
                tensors |= {
                    f"optimiser.{name}.{key}": value
                    for key, value in self.optimiser.state.get(parameter, {}).items()
                }
        return tensors, {"stage": self.progress.stage, "update": self.progress.update}

    def resume(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a ``state``. Raises OtherTraining if it is not one of this student."""
        names = self.student.parameters
        if any(
            name not in tensors or tensors[name].shape != parameter.shape for name, parameter in names.items()
        ):
            raise OtherTraining(
                "The file holds other layers than this training has. Expected a file of the same settings: "
                "choose another "
                "output name."
            )
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.copy_(tensors[name])
        self.progress = Progress(int(numbers["stage"]), int(numbers["update"]), tensors["losses"].tolist())
        self._start_stage()
        if self.progress.stage and not self.finished:
            self._remember(
                {name: tensors[f"previous.{name}"].to(parameter.device) for name, parameter in names.items()}
            )
        if self.progress.update:
            self.optimiser.load_state_dict(
                {
                    "param_groups": self.optimiser.state_dict()["param_groups"],
                    "state": {
                        i: {
                            key: tensors[f"optimiser.{name}.{key}"]
                            for key in ("step", "exp_avg", "exp_avg_sq")
                        }
                        for i, name in enumerate(names)
                    },
                }
            )
