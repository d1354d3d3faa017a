# SPDX-License-Identifier: GPL-3.0-or-later
"""Where students learn: states x with the target of each, from trajectories of the network itself or from the
user's pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import objective


class Network(Protocol):
    """A teacher and, on top of it, a student in training. x: [B, ...], sigma and g: [B], prompt: [B] numbers
    of prompts.
    """

    def teacher(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """(D(x, c), D(x)) without gradients."""
        ...

    def student(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        """D(x, c, w) with the present parameters."""
        ...

    def previous(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        """D(x, c, w) with the parameters of the stage before, without gradients."""
        ...


@dataclass(frozen=True)
class World:
    """What all stages share.

    latents: [n, ...] of the user's pictures in the model's own scale, row i to prompt i mod ``prompts``; or
    None.
    shape: of one latent. level: noise level sigma at a time in [0, 1], 1 being pure noise.
    """

    prompts: int
    shape: Sequence[int]
    scales: tuple[float, float]
    level: Callable[[float], float]
    flow: bool
    latents: Tensor | None = None

    def prompts_of(self, rows: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.prompts, (rows,), generator=generator)

    def scales_of(self, rows: int, generator: torch.Generator) -> Tensor:
        return objective.uniform(*self.scales, rows, generator)

    def start(self, rows: int, generator: torch.Generator, sigma: float) -> Tensor:
        """Pure noise at the highest level."""
        return sigma * torch.randn(rows, *self.shape, generator=generator)

    def noised(self, rows: int, generator: torch.Generator, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures at sigma [rows], and their prompts. Needs ``latents``."""
        assert self.latents is not None
        picture = torch.randint(len(self.latents), (rows,), generator=generator)
        x0, eps = self.latents[picture], torch.randn(rows, *self.shape, generator=generator)
        signal = 1 - sigma if self.flow else torch.ones_like(sigma)
        return objective.per_row(signal, x0) * x0 + objective.per_row(sigma, x0) * eps, picture % self.prompts


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


class Round(Protocol):
    """States made together, which serve many updates."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch: ...


class Stage(Protocol):
    """One thing to learn, in rounds of ``steps`` states a row, which depend on the generator alone."""

    @property
    def name(self) -> str: ...

    @property
    def world(self) -> World: ...

    @property
    def steps(self) -> int: ...

    def round(self, network: Network, rows: int, generator: torch.Generator) -> Round: ...


@dataclass(frozen=True)
class Answered:
    """States with both answers of the teacher, which together make its guided answer for every g."""

    world: World
    x: Tensor
    sigma: Tensor
    prompt: Tensor
    conditional: Tensor
    unconditional: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        g = self.world.scales_of(len(rows), generator)
        target = objective.guided(self.conditional[rows], self.unconditional[rows], g - 1)
        return Batch(self.x[rows], self.sigma[rows], self.prompt[rows], g, target)


@dataclass(frozen=True)
class Solved:
    """States whose target holds for the g it was made with."""

    states: Batch

    def __len__(self) -> int:
        return len(self.states.x)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        return self.states[rows]


@dataclass(frozen=True)
class Guidance:
    """Stage one, equation 3: the student answers with one pass what the teacher answers with two, for every
    g.

    Without pictures, the states lie on the teacher's own guided trajectories of ``steps`` Euler steps over
    random noise levels.
    """

    world: World
    steps: int = 16
    name = "guidance"

    def levels(self, generator: torch.Generator) -> Tensor:
        """[steps], falling from pure noise: one random time in each of as many equal parts of [0, 1], the
        first being 1.
        """
        times = (
            self.steps - 1 - torch.arange(self.steps) + torch.rand(self.steps, generator=generator)
        ) / self.steps
        times[0] = 1.0
        return torch.tensor([self.world.level(float(t)) for t in times])

    def round(self, network: Network, rows: int, generator: torch.Generator) -> Answered:
        if self.world.latents is not None:
            return self._of_pictures(network, rows, generator)
        prompt, g = self.world.prompts_of(rows, generator), self.world.scales_of(rows, generator)
        sigmas = self.levels(generator)
        x = self.world.start(rows, generator, float(sigmas[0]))
        visited = []
        for i in range(self.steps):
            sigma = sigmas[i].expand(rows)
            conditional, unconditional = network.teacher(x, sigma, prompt)
            visited.append((x, sigma, prompt, conditional, unconditional))
            if i + 1 < self.steps:
                x = objective.euler_step(
                    x, objective.guided(conditional, unconditional, g - 1), sigma, sigmas[i + 1].expand(rows)
                )
        return Answered(self.world, *(torch.cat(column) for column in zip(*visited, strict=True)))

    def _of_pictures(self, network: Network, rows: int, generator: torch.Generator) -> Answered:
        visited = []
        for _ in range(self.steps):
            sigma = torch.tensor([self.world.level(float(t)) for t in torch.rand(rows, generator=generator)])
            x, prompt = self.world.noised(rows, generator, sigma)
            visited.append((x, sigma, prompt, *network.teacher(x, sigma, prompt)))
        return Answered(self.world, *(torch.cat(column) for column in zip(*visited, strict=True)))


@dataclass(frozen=True)
class FewerSteps:
    """Stage two, algorithm 2: one deterministic step of the student for several of the previous student, at
    sampled g.

    fine: [N k + 1] sigmas, falling, of the previous student's steps; every k-th one is a border of the
    student's N steps. Without pictures, the states are the borders of the previous student's own
    trajectories.
    """

    world: World
    fine: Tensor
    steps: int

    @property
    def name(self) -> str:
        return f"{self.steps} steps"

    def round(self, network: Network, rows: int, generator: torch.Generator) -> Solved:
        k = (len(self.fine) - 1) // self.steps
        g = self.world.scales_of(rows, generator)
        solved = []
        prompt = self.world.prompts_of(rows, generator)
        x = self.world.start(rows, generator, float(self.fine[0]))
        for border in range(0, len(self.fine) - 1, k):
            if self.world.latents is not None:
                x, prompt = self.world.noised(rows, generator, self.fine[border].expand(rows))
            end = x
            for sigma, below in zip(
                self.fine[border : border + k], self.fine[border + 1 : border + k + 1], strict=True
            ):
                denoised = network.previous(end, sigma.expand(rows), prompt, g)
                end = objective.euler_step(end, denoised, sigma.expand(rows), below.expand(rows))
            sigma = self.fine[border].expand(rows)
            target = objective.one_step_for_many(x, sigma, end, self.fine[border + k].expand(rows))
            solved.append((x, sigma, prompt, g, target))
            x = end
        return Solved(Batch(*(torch.cat(column) for column in zip(*solved, strict=True))))
