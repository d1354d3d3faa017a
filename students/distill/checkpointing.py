# SPDX-License-Identifier: GPL-3.0-or-later
"""Gradient checkpointing: less memory for a second forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn


def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, run again in the backward pass instead of keeping what it computed; on copies, since
    blocks may change their input.
    """

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    def on_copies(*args: Any, **kwargs: Any) -> Any:
        return forward(*map(copied, args), **{key: copied(value) for key, value in kwargs.items()})

    return lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(
        on_copies, *args, use_reentrant=False, **kwargs
    )


@contextlib.contextmanager
def checkpointing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these blocks are checkpointed."""
    forwards = [block.forward for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = checkpointed(forward)
        yield
    finally:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
