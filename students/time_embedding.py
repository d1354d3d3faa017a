# SPDX-License-Identifier: GPL-3.0-or-later
"""Where guidance enters a network that was made without it: C e(w) joins the embedding of time (Meng et al.
2023, section 3.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import UnsupportedModel


def add_guidance(network: nn.Module, time_layer: str, addition: Tensor) -> RemovableHandle:
    """From now on the input of ``time_layer`` is t_emb + C e(w), until the handle is removed.

    addition: [B, F], one row for each of the batch. A network that is recomputed in the backward pass needs
    it until that has ended.
    """

    def joined(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] + fitted(addition.to(inputs[0]), inputs[0].shape), *inputs[1:])

    return network.get_submodule(time_layer).register_forward_pre_hook(joined)


@contextlib.contextmanager
def guided_time(network: nn.Module, time_layer: str, addition: Tensor) -> Iterator[None]:
    """:func:`add_guidance` for the calls inside."""
    handle = add_guidance(network, time_layer, addition)
    try:
        yield
    finally:
        handle.remove()


def fitted(addition: Tensor, shape: torch.Size) -> Tensor:
    """[B, F] as it joins an embedding of ``shape``: [B, F], or [B, T, F] or [B T, F] where each of T frames
    or tokens has a time of its own, or [1, F] where the network takes one time for the whole batch.

    Raises UnsupportedModel where rows of different guidance would share one time.
    """
    rows, given = len(addition), shape[0]
    if given == 1 < rows:
        if not bool((addition == addition[:1]).all()):
            raise UnsupportedModel(
                f"This network embeds one time for all {rows} rows of a batch, which have different guidance "
                "scales. Expected the same scale in every row: sample them one after the other."
            )
        addition = addition[:1]
    elif given % rows:
        raise UnsupportedModel(
            f"This network embeds {given} times for {rows} rows, which the guidance cannot be told apart by. "
            "Expected as many for every row: sample it without a mask of its own times."
        )
    else:
        addition = addition.repeat_interleave(given // rows, dim=0)
    return addition.reshape(len(addition), *[1] * (len(shape) - 2), -1)
