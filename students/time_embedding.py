# SPDX-License-Identifier: GPL-3.0-or-later
"""Where guidance enters a network that was made without it: C e(w) joins the embedding of time (Meng et al.
2023, section 3.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import UnsupportedModel


def add_guidance(network: nn.Module, time_layer: str, addition: Tensor, sigma: Tensor) -> RemovableHandle:
    """From now on the input of ``time_layer`` is t_emb + C e(w), until the handle is removed.

    addition: [B, F] and sigma: [B], one row for each of the batch. A network that is recomputed in the
    backward pass needs it until that has ended.
    """
    alike = bool((sigma == sigma[:1]).all())

    def joined(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] + fitted(addition.to(inputs[0]), inputs[0], alike), *inputs[1:])

    return network.get_submodule(time_layer).register_forward_pre_hook(joined)


@contextlib.contextmanager
def guided_time(network: nn.Module, time_layer: str, addition: Tensor, sigma: Tensor) -> Iterator[None]:
    """:func:`add_guidance` for the calls inside."""
    handle = add_guidance(network, time_layer, addition, sigma)
    try:
        yield
    finally:
        handle.remove()


def fitted(addition: Tensor, t_emb: Tensor, alike: bool) -> Tensor:
    """[B, F] as it joins t_emb: [B, F], or [B, T, F] or [B T, F] where each of T frames or tokens has a time
    of its own, or [T B, F] where each row has T times, or [1, F] where the batch has one.

    alike: whether all rows have the same sigma. Raises UnsupportedModel where rows of different guidance
    would share one time.
    """
    rows, given = len(addition), len(t_emb)
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
    elif given > rows > 1 and in_blocks(t_emb, rows, alike):
        addition = addition.repeat(given // rows, 1)
    else:
        addition = addition.repeat_interleave(given // rows, dim=0)
    return addition.reshape(len(addition), *[1] * (t_emb.ndim - 2), -1)


def in_blocks(t_emb: Tensor, rows: int, alike: bool) -> bool:
    """Whether B T times are in T blocks of one time for each of B rows (such as those of the picture, then
    those of its references, which are 0), and not in B blocks of the T times of a row. Seen by which of them
    are equal.
    """
    of_rows, of_blocks = t_emb.reshape(rows, -1), t_emb.reshape(len(t_emb) // rows, rows, -1)
    block_of_equals = (of_blocks == of_blocks[:, :1]).flatten(1).all(1)
    if alike:
        return bool(block_of_equals.all()) and not bool((of_rows == of_rows[:1]).all())
    times_of_a_row = t_emb.reshape(rows, len(t_emb) // rows, -1)
    return bool(block_of_equals[-1]) and not bool((times_of_a_row == times_of_a_row[:, :1]).all())
