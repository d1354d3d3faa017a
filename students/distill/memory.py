# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a training takes, asked of one row before it starts."""

from __future__ import annotations

import logging

import comfy.model_management
import torch
from torch import Tensor

from .distribution import TrainingDistribution
from .errors import NotEnoughMemory
from .trainable import TrainableStudent

MARGIN = 1.25
"""Of the estimate, for what the forward pass holds for a moment."""
COPIES_OF_PARAMETERS = 4
"""Parameter, gradient and Adam's two means."""
GIB = 2**30


def needed_memory(student: TrainableStudent, distribution: TrainingDistribution, batch: int) -> int:
    """Bytes that training takes beside the weights: what the backward pass keeps of ``batch`` rows, and the
    optimiser's.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.update(_storage(tensor))
        return tensor

    one = torch.ones(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = student.student(
            torch.zeros(1, *student.shape),
            one * distribution.level(0.5),
            torch.zeros(1).long(),
            one * distribution.scales[0],
        )
    for parameter in [*student.network.parameters(), *student.parameters.values()]:
        for pointer in _storage(parameter):
            kept.pop(pointer, None)
    activations = sum(kept.values())
    del result
    parameters = sum(p.numel() * p.element_size() for p in student.parameters.values())
    return int(MARGIN * batch * activations) + COPIES_OF_PARAMETERS * parameters


def _storage(tensor: Tensor) -> dict[int, int]:
    """Where its bytes are -> how many; nothing of a wrapper around packed weights, which are there anyway."""
    try:
        storage = tensor.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    except RuntimeError:
        return {}


def check_memory(student: TrainableStudent, distribution: TrainingDistribution, batch: int) -> None:
    """Raise NotEnoughMemory, with how much is needed, before the training starts."""
    needed = needed_memory(student, distribution, batch)
    free = comfy.model_management.get_free_memory(student.device)
    logging.info(
        "DizzyDiff: distilling takes about %.2f GiB beside the model; %.2f GiB are free on %s.",
        needed / GIB,
        free / GIB,
        student.device,
    )
    if needed > free:
        raise NotEnoughMemory(
            f"Training {batch} rows at once needs about {needed / GIB:.1f} GiB beside the model, and "
            f"{free / GIB:.1f} GiB are free on {student.device}. Expected more: lower the batch or the "
            "latent's size, or turn gradient checkpointing on."
        )
