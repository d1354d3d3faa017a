# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a teacher before it is trained, so that no training ends with a student of nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapter import PROJECTION
from ..errors import NoUnconditional
from .distribution import TrainingDistribution
from .errors import UnsupportedTeacher
from .trainable import TrainableStudent

GUIDABLE_RTOL = 1e-5
"""Of predictions with and without the prompt: a teacher that differs less has no guidance to learn."""
ROWS_APART_RTOL, ROWS_APART_RTOL_HALF = 5e-3, 0.02
"""Of a row in a batch and the same row alone: what is rounded differently stays below, in fp32 and in half
precision.
"""


def check_teacher(student: TrainableStudent, distribution: TrainingDistribution) -> None:
    """Raise NoUnconditional unless the teacher answers differently without its prompt, and UnsupportedTeacher
    unless each row of a batch is answered as it is alone.
    """
    x, sigma, prompt = _rows(student, distribution)
    conditional, unconditional = student.teacher(x, sigma, prompt)
    if (conditional - unconditional).abs().max() <= GUIDABLE_RTOL * conditional.abs().max():
        raise NoUnconditional(
            f"{student.name} answers the same with the prompts and with the negative prompt: there is no "
            "guidance to learn. Expected a model trained for CFG, and prompts that differ from the negative "
            "one."
        )
    check_rows(student, distribution)


def _rows(student: TrainableStudent, distribution: TrainingDistribution) -> tuple[Tensor, Tensor, Tensor]:
    """x, sigma and prompt of a few rows."""
    rows, level = max(2, min(4, len(student.positive))), distribution.level(0.5)
    x = distribution.draw_noise(rows, torch.Generator().manual_seed(0), level)
    return x, torch.full((rows,), level), torch.arange(rows) % len(student.positive)


def check_rows(student: TrainableStudent, distribution: TrainingDistribution) -> None:
    """Raise UnsupportedTeacher unless each row of a batch is answered as it is alone."""
    x, sigma, prompt = _rows(student, distribution)
    conditional = student.conditional(x, sigma, prompt)
    alone = student.conditional(x[:1], sigma[:1], prompt[:1])
    tolerance = ROWS_APART_RTOL if student.dtype == torch.float32 else ROWS_APART_RTOL_HALF
    for together in (conditional[:1], student.two_together(x[:2], sigma[:2])[:1]):
        if _rms(alone - together) > tolerance * _rms(alone):
            raise UnsupportedTeacher(
                f"{student.name} answers a row of a batch otherwise than the same row alone: its rows are "
                "parts of one picture or video. Expected a model whose rows are pictures of their own."
            )


def check_gradient(student: TrainableStudent, distribution: TrainingDistribution) -> None:
    """Raise UnsupportedTeacher unless a gradient reaches C and the LoRA layers."""
    sigma = torch.full((1,), distribution.level(0.5))
    x = distribution.draw_noise(1, torch.Generator().manual_seed(0), float(sigma))
    g = torch.full((1,), distribution.scales[1], dtype=torch.float64)
    student.student(x, sigma, torch.zeros(1).long(), g).square().mean().backward()
    reached = [name for name, each in student.parameters.items() if each.grad is not None and each.grad.any()]
    for parameter in student.parameters.values():
        parameter.grad = None
    if PROJECTION not in reached or len(reached) < 2:
        raise UnsupportedTeacher(
            f"{student.name}: no gradient reaches its layers, so it cannot be trained. Expected a network "
            "that computes with differentiable operations throughout."
        )


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
