# SPDX-License-Identifier: GPL-3.0-or-later
"""Guidance joins the embedding of time of its own row, and leaves a network as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dizzydiff.students.time_embedding import add_guidance, guided_time


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Identity()

    def forward(self, t_emb: Tensor) -> Tensor:
        return self.time(t_emb)


ADDITION = torch.tensor([[10.0], [20.0]])


def test_the_noise_levels_of_a_batch_tell_whose_times_are_whose() -> None:
    """Four times for two rows: at two levels those of the pictures, then of their references; at one those of
    two frames of a row, then of the other.
    """
    network = Network()
    with guided_time(network, "time", ADDITION, torch.tensor([0.7, 0.3])):
        assert network(torch.tensor([[7.0], [3.0], [0.0], [0.0]])).flatten().tolist() == [17, 23, 10, 20]
    with guided_time(network, "time", ADDITION, torch.tensor([0.7, 0.7])):
        assert network(torch.tensor([[7.0], [3.0], [7.0], [3.0]])).flatten().tolist() == [17, 13, 27, 23]


def test_a_network_that_failed_is_unguided_again() -> None:
    network, times = Network(), torch.tensor([[1.0], [2.0]])
    with (
        pytest.raises(RuntimeError, match="interrupted"),
        guided_time(network, "time", ADDITION, times[:, 0]),
    ):
        raise RuntimeError("interrupted")
    assert torch.equal(network(times), times)


def test_guidance_is_added_until_its_handle_is_removed() -> None:
    network, times = Network(), torch.tensor([[1.0], [2.0]])
    handle = add_guidance(network, "time", ADDITION, times[:, 0])
    assert torch.equal(network(times), times + ADDITION)
    handle.remove()
    assert torch.equal(network(times), times)
