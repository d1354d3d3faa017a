# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong inside somebody else's network, said to the user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import comfy.model_management
from torch.utils.checkpoint import CheckpointError

from ...common import memory
from ..errors import StudentError
from .errors import NotEnoughMemory, UnsupportedTeacher


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left, in any of the ways that backends say so."""
    is_oom = getattr(comfy.model_management, "is_oom", None)  # of newer releases
    return memory.is_out_of_memory(error, *([is_oom] if is_oom else []))


@contextlib.contextmanager
def saying_out_of_memory() -> Iterator[None]:
    """Raises NotEnoughMemory in place of whatever a backend raises."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(
            f"There was not enough memory to train ({error}). What was trained until then is saved. Expected "
            "more: lower the batch or the latent's size, or turn gradient checkpointing on, and run again."
        ) from error


@contextlib.contextmanager
def saying_what_fails(name: str, shape: Sequence[int]) -> Iterator[None]:
    """What a network raises inside is said as UnsupportedTeacher."""
    try:
        yield
    except Exception as error:
        if isinstance(error, StudentError) or is_out_of_memory(error):
            raise
        if isinstance(error, CheckpointError):
            raise UnsupportedTeacher(
                f"{name} computes something else when a part of it is run again, so it cannot be trained "
                "with gradient checkpointing. Expected it to be off: turn gradient_checkpointing off."
            ) from error
        raise UnsupportedTeacher(
            f"{name} cannot be trained on latents of shape {list(shape)} with these prompts "
            f"({type(error).__name__}: {error}). Expected a model that samples this latent from its prompt "
            "alone, one picture a row, with differentiable operations throughout: take off what patches the "
            "model for sampling, such as EasyCache."
        ) from error
