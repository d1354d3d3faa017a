# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapters of any teacher without a training."""

from __future__ import annotations

from typing import Any

import torch

from dizzydiff.common.fingerprint import fingerprint
from dizzydiff.students.adapter import Adapter, adapter_of
from dizzydiff.students.distill.saving import adapter_metadata
from dizzydiff.students.distill.teacher import trainable
from dizzydiff.students.distill.trainable import AdapterShape, Prompts, TrainableStudent
from dizzydiff.students.guidance import distilled_guidance


def random_adapter(teacher: Any, encode: Any, shape: tuple[int, ...], **plan: Any) -> Adapter:
    """Of the layers that a training adapts, with numbers of a size that makes every part matter."""
    guidance = distilled_guidance((1.0, 8.0))
    prompts = Prompts([encode("red")], encode(""))
    student = TrainableStudent(trainable(teacher), prompts, shape, AdapterShape(guidance, 2, 0))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        key: 0.5 * torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        for key, value in student.parameters.items()
    }
    metadata = adapter_metadata(
        teacher=fingerprint(teacher),
        teacher_name="teacher",
        time_layer=student.time_layer,
        scales=(1.0, 8.0),
        plan=plan,
        versions={},
    )
    return adapter_of(tensors, metadata, "mine")
