# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guider answers at a few noise levels: whether it is a teacher, and by which it is known again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...common.messages import Say
from ..errors import NoUnconditional
from .checks import GUIDABLE_RTOL
from .distribution import TrainingDistribution
from .errors import OtherTraining
from .guider_visits import GuiderVisits
from .stages import Denoise, Visit

ANSWERS = "guider_answers"
"""Key in a file's metadata."""
ASKED_TIMES = (0.95, 0.65, 0.35, 0.1)
"""Of the noise levels at which a guider is asked: one may guide at some of them alone."""
PROMPTS_ASKED = 4
ANSWERS_KEPT = 64
"""Values of a guider's answers that go into the file, evenly spaced."""
SAME_ANSWERS_RTOL = 5e-3
"""More than another machine rounds, less than a setting changes."""


def known_answers(
    guided: GuiderVisits, distribution: TrainingDistribution, before: Any, file: str, say: Say
) -> list[float]:
    """What a guider answers, for the metadata of ``file``, where it answered ``before`` if it was begun.

    Raises OtherTraining where it answers otherwise than before: some patch of its model, an option or its
    negative prompt is another. Where a file is begun, raises NoUnconditional for what is no teacher.
    """
    answers = GuiderAnswers(guided, distribution, guided.guided.name)
    kept = answers.kept()
    if isinstance(before, list) and len(before) == len(kept):
        if not _near(torch.tensor(kept), torch.tensor(before)):
            raise OtherTraining(
                f"{file} exists and was made with a guider that answers otherwise: a patch of its model, its "
                "negative condition or an option is another. Expected the same, to go on with it: choose "
                "another output name, or remove the file."
            )
    else:
        answers.check(guided.guided.dials, distribution.prompts, say)
    return kept


class GuiderAnswers:
    """What a guider, called ``name``, answers at a few noise levels."""

    def __init__(self, visit: Visit, distribution: TrainingDistribution, name: str) -> None:
        self.visit, self.distribution, self.name = visit, distribution, name
        self.sigmas = torch.tensor([distribution.level(time) for time in ASKED_TIMES])
        noise = distribution.draw_noise(len(self.sigmas), torch.Generator().manual_seed(0), 1.0)
        self.x = [sigma * row[None] for sigma, row in zip(self.sigmas, noise, strict=True)]
        self.usual = self(0, self.scales())

    def scales(self, dial: int = 0, g: float | None = None) -> Tensor:
        """[signals]: the middle of the range, and ``g`` for one of the dials."""
        low, high = self.distribution.scales
        scales = torch.full((self.distribution.signals,), (low + high) / 2, dtype=torch.float64)
        if g is not None:
            scales[dial] = g
        return scales

    def __call__(self, prompt: int, g: Tensor) -> Tensor:
        answers: list[Tensor] = []

        def walk(denoise: Denoise) -> None:
            answers.extend(denoise(x, sigma[None]) for x, sigma in zip(self.x, self.sigmas, strict=True))

        self.visit(walk, torch.cat([self.sigmas, torch.zeros(1)]), prompt, g)
        return torch.cat(answers)

    def kept(self) -> list[float]:
        """A few values, by which a guider is known again."""
        values = self.usual.flatten()
        return values[:: max(1, len(values) // ANSWERS_KEPT)][:ANSWERS_KEPT].tolist()

    def check(self, dials: Sequence[str], prompts: int, say: Say) -> None:
        """Raise NoUnconditional unless the answers depend on each dial and on the prompt; ``say`` that they
        depend on chance.
        """
        for number, dial in enumerate(dials):
            self._check_dial(number, dial)
        others = range(1, min(prompts, PROMPTS_ASKED))
        if others and all(_same(self(i, self.scales()), self.usual) for i in others):
            raise NoUnconditional(
                f"{self.name} answers the same with each of the prompts: it does not use the condition that "
                "they take the place of. Expected a guider whose positive condition is the prompt, and "
                "prompts that differ."
            )
        if not _near(self(0, self.scales()), self.usual):
            say(
                f"{self.name} answers otherwise when it is asked again, by chance or by what it remembers: "
                "a training that is interrupted goes on to another student than one that is not."
            )

    def _check_dial(self, number: int, dial: str) -> None:
        low, high = self.distribution.scales
        at_low, at_high = (self(0, self.scales(number, g)) for g in (low, high))
        if _same(at_low, at_high):
            raise NoUnconditional(
                f"{self.name} answers the same at {dial} = {low:g} and {high:g}: there is no guidance to "
                "learn. Expected another name in dials, or nothing, to leave all numbers as they are."
            )
        if _same(at_low * high, at_high * low):
            raise NoUnconditional(
                f"{self.name} answers at {dial} = {high:g} with a multiple of what it answers at {low:g}: it "
                "has no negative condition to weigh. Expected a guider with one, such as CFG Guider, or "
                "nothing in dials."
            )


def _near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= SAME_ANSWERS_RTOL * other.norm())


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= GUIDABLE_RTOL * one.abs().max())
