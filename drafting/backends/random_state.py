# SPDX-License-Identifier: GPL-3.0-or-later
"""torch's own generators, which whatever is in a graph may draw from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def random_states(device: torch.device) -> list[Tensor]:
    """Of the host's generator, and of a device's where it has one that can be read."""
    states = [torch.random.get_rng_state()]
    if device.type in ("cuda", "xpu"):
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def put_back(states: Sequence[Tensor], device: torch.device) -> None:
    """What :func:`random_states` read."""
    torch.random.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], device)


def same_states(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, one, other))
