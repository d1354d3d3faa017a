# SPDX-License-Identifier: GPL-3.0-or-later
"""Which layer of a network guidance can join: asked of the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..linear import is_linear
from .errors import UnsupportedTeacher

VALUES_COMPARED = 1024


@dataclass(frozen=True)
class Probes:
    """Three predictions of a network: of some state, of the same x at another sigma, of another x at the same
    sigma.
    """

    state: Callable[[], Any]
    other_sigma: Callable[[], Any]
    other_x: Callable[[], Any]


def time_layer_of(network: nn.Module, probes: Probes, name: str) -> str:
    """The first linear layer whose input depends on sigma alone: the one behind the embedding of time.

    Raises UnsupportedTeacher.
    """
    state, other_sigma, other_x = (
        _linear_inputs(network, probe) for probe in (probes.state, probes.other_sigma, probes.other_x)
    )
    for layer, given in state.items():
        if (
            layer in other_sigma
            and layer in other_x
            and not _same(given, other_sigma[layer])
            and _same(given, other_x[layer])
        ):
            return layer
    raise UnsupportedTeacher(
        f"{name}: no layer of {type(network).__name__} receives the noise level alone, so guidance has "
        "nowhere to join it. Expected a UNet of Stable Diffusion's kind, or a transformer such as Flux, SD3, "
        "Lumina or Wan."
    )


Seen = tuple[torch.Size, Tensor, Tensor]
"""Shape, first values and sum of an input: all activations of a large network would not fit beside it."""


def _linear_inputs(network: nn.Module, predict: Callable[[], Any]) -> dict[str, Seen]:
    """What each linear layer is given at its first call, in the order of the calls."""
    inputs: dict[str, Seen] = {}
    with contextlib.ExitStack() as hooks:
        for layer, module in network.named_modules():
            if is_linear(module):
                hooks.enter_context(_first_input(layer, module, inputs))
        with torch.no_grad():
            predict()
    return inputs


@contextlib.contextmanager
def _first_input(layer: str, module: nn.Module, inputs: dict[str, Seen]) -> Iterator[None]:
    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        if layer not in inputs and given and isinstance(given[0], Tensor):
            x = given[0].detach()
            inputs[layer] = x.shape, x.flatten()[:VALUES_COMPARED].float().cpu(), x.float().sum().cpu()

    handle = module.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _same(a: Seen, b: Seen) -> bool:
    return a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
