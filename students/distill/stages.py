# SPDX-License-Identifier: GPL-3.0-or-later
"""The two stages of Meng et al. 2023: states x with the target of each, from trajectories of the networks
themselves or from the user's pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ...common.steps import euler_step, per_row
from . import objective
from .distribution import TrainingDistribution

TeacherCall = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, sigma, prompt) -> (D(x, c), D(x))."""
Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x [1, ...], sigma [1]) -> the guided D on the CPU."""
Visit = Callable[[Callable[[Denoise], None], Tensor, int, Tensor], None]
"""(walk, sigmas, prompt, g): calls ``walk(denoise)`` where a guider with the scales g ([] or [signals])
samples a prompt over falling sigmas.
"""


class Student(Protocol):
    """A teacher and, on the same network, a student in training, whose parameters are trained by name.

    x: [B, ...], sigma and g: [B], prompt: [B] numbers of prompts.
    """

    parameters: Mapping[str, nn.Parameter]

    def teacher(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """(D(x, c), D(x)) without gradients, on the CPU."""
        ...

    def student(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        """D(x, c, w) with the present parameters."""
        ...


@dataclass(frozen=True)
class FrozenStudent:
    """The student as it was at the end of the stage before: the teacher of progressive distillation."""

    trained: Student
    parameters: Mapping[str, Tensor]

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        """D(x, c, w) on the CPU. The parameters in training are exchanged for the time of the call."""
        present = {name: parameter.data for name, parameter in self.trained.parameters.items()}
        try:
            for name, parameter in self.trained.parameters.items():
                parameter.data = self.parameters[name]
            return self.trained.student(x, sigma, prompt, g).cpu()
        finally:
            for name, parameter in self.trained.parameters.items():
                parameter.data = present[name]


@dataclass(frozen=True)
class Batch:
    """Rows to learn from: the student is to answer ``target`` at (x, sigma, prompt, g)."""

    x: Tensor
    sigma: Tensor
    prompt: Tensor
    g: Tensor
    target: Tensor

    def __getitem__(self, rows: Tensor) -> Batch:
        return Batch(self.x[rows], self.sigma[rows], self.prompt[rows], self.g[rows], self.target[rows])

    @staticmethod
    def cat(batches: Iterable[Batch]) -> Batch:
        columns = zip(*(vars(batch).values() for batch in batches), strict=True)
        return Batch(*(torch.cat(column) for column in columns))


class TrajectoryPool(Protocol):
    """States of trajectories that were made together; they serve many updates."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """The states of these numbers, as examples."""
        ...


class Stage(Protocol):
    """One thing to learn, from pools of ``steps`` states a row, which depend on the generator alone."""

    @property
    def name(self) -> str: ...

    @property
    def distribution(self) -> TrainingDistribution: ...

    @property
    def steps(self) -> int: ...

    def pool(
        self, student: Student, frozen: FrozenStudent | None, rows: int, generator: torch.Generator
    ) -> TrajectoryPool: ...


@dataclass(frozen=True)
class TeacherPool:
    """States with both predictions of the teacher, which together make its guided one for every g."""

    distribution: TrainingDistribution
    x: Tensor
    sigma: Tensor
    prompt: Tensor
    conditional: Tensor
    unconditional: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        g = self.distribution.draw_scales(len(rows), generator)
        target = objective.guided(self.conditional[rows], self.unconditional[rows], g - 1)
        return Batch(self.x[rows], self.sigma[rows], self.prompt[rows], g, target)


@dataclass(frozen=True)
class TargetPool:
    """States whose target holds for the g it was made with."""

    states: Batch

    def __len__(self) -> int:
        return len(self.states.x)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        return self.states[rows]


@dataclass(frozen=True)
class GuidanceStage:
    """Stage one, equation 3: one pass of the student for two of the teacher, at every g.

    Without pictures, the states lie on the teacher's own guided trajectories of ``steps`` Euler steps over
    random noise levels.
    """

    distribution: TrainingDistribution
    steps: int = 16
    name = "guidance"

    def pool(
        self, student: Student, frozen: FrozenStudent | None, rows: int, generator: torch.Generator
    ) -> TeacherPool:
        visit = self._trajectories if self.distribution.latents is None else self._pictures
        columns = zip(*visit(student.teacher, rows, generator), strict=True)
        return TeacherPool(self.distribution, *(torch.cat(column) for column in columns))

    def _trajectories(
        self, teacher: TeacherCall, rows: int, generator: torch.Generator
    ) -> Iterable[tuple[Tensor, ...]]:
        prompt = self.distribution.draw_prompts(rows, generator)
        g = self.distribution.draw_scales(rows, generator)
        sigmas = random_levels(self.distribution, self.steps, generator)
        x = self.distribution.draw_noise(rows, generator, float(sigmas[0]))
        for i in range(self.steps):
            sigma = sigmas[i].expand(rows)
            conditional, unconditional = teacher(x, sigma, prompt)
            yield x, sigma, prompt, conditional, unconditional
            if i + 1 < self.steps:
                D = objective.guided(conditional, unconditional, g - 1)
                x = euler_step(x, D, per_row(sigma, x), per_row(sigmas[i + 1].expand(rows), x))

    def _pictures(
        self, teacher: TeacherCall, rows: int, generator: torch.Generator
    ) -> Iterable[tuple[Tensor, ...]]:
        for _ in range(self.steps):
            times = torch.rand(rows, generator=generator)
            sigma = torch.tensor([self.distribution.level(float(t)) for t in times])
            x, prompt = self.distribution.draw_noised_latents(rows, generator, sigma)
            yield x, sigma, prompt, *teacher(x, sigma, prompt)


def random_levels(distribution: TrainingDistribution, steps: int, generator: torch.Generator) -> Tensor:
    """[steps] sigmas, falling from pure noise: one random time in each of as many equal parts of [0, 1], the
    first being 1.
    """
    times = (steps - 1 - torch.arange(steps) + torch.rand(steps, generator=generator)) / steps
    times[0] = 1.0
    return torch.tensor([distribution.level(float(t)) for t in times])


@dataclass(frozen=True)
class GuiderStage:
    """Stage one for any guidance: one pass of the student for however many a guider makes.

    What it answers at one scale says nothing of others, so that a state serves the g of its trajectory alone.
    A guider has one scale, and may remember a trajectory: it samples one after the other, from noise to
    picture, and ``rows`` of them differ in g as much as they can.
    """

    distribution: TrainingDistribution
    visit: Visit
    steps: int = 16
    name = "guidance"

    def pool(
        self, student: Student, frozen: FrozenStudent | None, rows: int, generator: torch.Generator
    ) -> TargetPool:
        visited = self._trajectories if self.distribution.latents is None else self._pictures
        return TargetPool(Batch.cat(visited(rows, generator)))

    def _trajectories(self, rows: int, generator: torch.Generator) -> Iterable[Batch]:
        prompt = self.distribution.draw_prompts(rows, generator)
        g = self.distribution.draw_spread_scales(rows, generator)
        sigmas = torch.cat([random_levels(self.distribution, self.steps, generator), torch.zeros(1)])
        x = self.distribution.draw_noise(rows, generator, float(sigmas[0]))
        for row in range(rows):
            yield from self._visited(x[row : row + 1], sigmas, prompt[row : row + 1], g[row : row + 1])

    def _pictures(self, rows: int, generator: torch.Generator) -> Iterable[Batch]:
        for _ in range(self.steps):
            times = torch.rand(rows, generator=generator)
            sigma = torch.tensor([[self.distribution.level(float(t)), 0.0] for t in times])
            g = self.distribution.draw_spread_scales(rows, generator)
            x, prompt = self.distribution.draw_noised_latents(rows, generator, sigma[:, 0])
            for row in range(rows):
                one = slice(row, row + 1)
                yield from self._visited(x[one], sigma[row], prompt[one], g[one])

    def _visited(self, x: Tensor, sigmas: Tensor, prompt: Tensor, g: Tensor) -> list[Batch]:
        """The states of Euler steps from x [1, ...] over all sigmas but the last, with the guider's D."""
        states: list[Batch] = []

        def walk(denoise: Denoise) -> None:
            here = x
            for sigma, sigma_next in itertools.pairwise(sigmas[:, None]):
                D = denoise(here, sigma)
                states.append(Batch(here, sigma, prompt, g, D))
                here = euler_step(here, D, per_row(sigma, here), per_row(sigma_next, here))

        self.visit(walk, sigmas, int(prompt), g[0])
        return states


@dataclass(frozen=True)
class ProgressiveStage:
    """Stage two, algorithm 2: one deterministic step of the student for several of the frozen student, at
    sampled g.

    fine: [N k + 1] sigmas, falling, of the frozen student's steps; every k-th one begins a step of the N of
    the student. Without pictures, the states are those of the frozen student's own trajectories at these.
    """

    distribution: TrainingDistribution
    fine: Tensor
    steps: int

    @property
    def name(self) -> str:
        return f"{self.steps} steps"

    def pool(
        self, student: Student, frozen: FrozenStudent | None, rows: int, generator: torch.Generator
    ) -> TargetPool:
        assert frozen is not None
        k = (len(self.fine) - 1) // self.steps
        g = self.distribution.draw_scales(rows, generator)
        prompt = self.distribution.draw_prompts(rows, generator)
        x = self.distribution.draw_noise(rows, generator, float(self.fine[0]))
        solved = []
        for start in range(0, len(self.fine) - 1, k):
            sigmas = self.fine[start : start + k + 1, None].expand(-1, rows)
            if self.distribution.latents is not None:
                x, prompt = self.distribution.draw_noised_latents(rows, generator, sigmas[0])
            x_end = x
            for sigma, sigma_next in itertools.pairwise(sigmas):
                D = frozen(x_end, sigma, prompt, g)
                x_end = euler_step(x_end, D, per_row(sigma, x), per_row(sigma_next, x))
            target = objective.one_step_target(x, sigmas[0], x_end, sigmas[-1])
            solved.append(Batch(x, sigmas[0], prompt, g, target))
            x = x_end
        return TargetPool(Batch.cat(solved))
