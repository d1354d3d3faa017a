# SPDX-License-Identifier: GPL-3.0-or-later
"""The training loop of all stages: the same result in one go or in parts, since every random number follows
from (seed, stage, update).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import objective
from .errors import Diverged, OtherTraining
from .plan import Plan, PlannedStage
from .stages import Batch, FrozenStudent, Stage, Student, TrajectoryPool

BETAS = (0.9, 0.99)
"""Adam's."""
LARGEST_GRADIENT_NORM = 1.0
USES_OF_A_STATE = 3
"""How often a state is learned from, on average."""
POOLS_KEPT, STATES_KEPT = 4, 32
"""A batch is drawn from the newest pools: four, more where a pool has few states a row."""
FROZEN, OPTIMISER, LOSSES = "previous.", "optimiser.", "losses"
"""Keys of a half-trained file: prefixes of the frozen student's and the optimiser's tensors; the losses."""


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

    def __init__(self, student: Student, stages: Sequence[PlannedStage], plan: Plan) -> None:
        self.student, self.stages, self.plan = student, stages, plan
        self.progress = Progress()
        self.frozen: FrozenStudent | None = None
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
        self.pools: dict[int, TrajectoryPool] = {}
        self.optimiser = torch.optim.AdamW(
            self.student.parameters.values(), self.plan.rate, BETAS, weight_decay=0.0
        )
        if self.progress.stage:
            present = {name: each.detach().clone() for name, each in self.student.parameters.items()}
            self.frozen = FrozenStudent(self.student, present)

    def _generator(self, kind: int, index: int) -> torch.Generator:
        number = ((self.plan.seed * 1_000_003 + self.progress.stage) * 2 + kind) * 10_000_019 + index
        return torch.Generator().manual_seed(number % 2**63)

    def _batch(self, stage: Stage) -> Batch:
        """Rows of the newest pools, which are made again where a resumed training lacks them."""
        generator = self._generator(0, self.progress.update)
        newest = self.progress.update // (USES_OF_A_STATE * stage.steps)
        oldest = max(0, newest + 1 - max(POOLS_KEPT, STATES_KEPT // stage.steps))
        self.pools = {
            n: self.pools.get(n)
            or stage.pool(self.student, self.frozen, self.plan.batch, self._generator(1, n))
            for n in range(oldest, newest + 1)
        }
        pools = list(self.pools.values())
        numbers = torch.randint(sum(map(len, pools)), (self.plan.batch,), generator=generator)
        drawn = []
        for pool in pools:
            inside = numbers[(numbers >= 0) & (numbers < len(pool))]
            drawn.append(pool.batch(inside, generator))
            numbers = numbers - len(pool)
        return Batch.cat(drawn)

    def _update(self, planned: PlannedStage) -> None:
        batch = self._batch(planned.stage)
        denoised = self.student.student(batch.x, batch.sigma, batch.prompt, batch.g)
        flow = planned.stage.distribution.flow
        w = objective.strongest(batch.g)
        loss = objective.loss(denoised, batch.target.to(denoised), batch.sigma, w, flow)
        self._check(loss, "loss")
        loss.backward()
        self._check(
            nn.utils.clip_grad_norm_(self.student.parameters.values(), LARGEST_GRADIENT_NORM), "gradient"
        )
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
                "The state before that update is kept. Expected finite numbers: lower the learning rate, or "
                "train a model in bf16 or fp32."
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers from which ``resume`` goes on; the tensors of a finished training are the
        student's alone.
        """
        tensors = {name: parameter.detach() for name, parameter in self.student.parameters.items()}
        tensors[LOSSES] = torch.tensor(self.progress.losses)
        if not self.finished:
            before = {} if self.frozen is None else self.frozen.parameters
            tensors |= {FROZEN + name: value for name, value in before.items()}
            for name, parameter in self.student.parameters.items():
                tensors |= {
                    f"{OPTIMISER}{name}.{key}": value
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
                "choose another output name."
            )
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.copy_(tensors[name])
        self.progress = Progress(int(numbers["stage"]), int(numbers["update"]), tensors[LOSSES].tolist())
        self._start_stage()
        if self.progress.stage and not self.finished:
            before = {name: tensors[FROZEN + name].to(each.device) for name, each in names.items()}
            self.frozen = FrozenStudent(self.student, before)
        if self.progress.update:
            self._resume_optimiser(tensors)

    def _resume_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        """Layers that the network does not use have no state."""
        state = {
            i: {key: tensors[f"{OPTIMISER}{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for i, name in enumerate(self.student.parameters)
            if f"{OPTIMISER}{name}.step" in tensors
        }
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"param_groups": groups, "state": state})
