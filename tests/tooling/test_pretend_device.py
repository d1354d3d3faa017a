# SPDX-License-Identifier: GPL-3.0-or-later
"""The pretended device computes what the host computes, books what a GPU would be asked to do, and refuses
what a GPU refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType

import pytest
import torch
from torch import Tensor

from devtools.pretend_device import DEVICE, Away, Ledger, booked


def anywhere(frame: FrameType) -> str:
    return "here"


def totals(ledger: Ledger) -> tuple[int, int, int]:
    return ledger.launches["here"], ledger.waits["here"], ledger.host_operations["here"]


def test_values_are_those_of_the_host_and_operations_are_booked() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    with booked(anywhere, x.nbytes) as ledger:
        away = Away(x)
        result = (away * 2 + torch.tensor(1.0)).T[0]
    assert result.device == DEVICE and isinstance(result, Away)
    assert result.held.tolist() == [1.0, 7.0]
    assert totals(ledger) == (2, 0, 0), "a view launches nothing"
    assert ledger.passes["here"] == 4, "each operation reads a latent and writes one"


def test_waits_are_counted_where_the_host_needs_a_value() -> None:
    with booked(anywhere, 4) as ledger:
        away = Away(torch.ones(3))
        assert float(away.sum()) == 3
        away.cpu()
        away[away > 0]
        torch.tensor([1.0, 2.0], device=DEVICE)
        torch.ones(3).to(DEVICE, non_blocking=True)
        torch.ones(3, device=DEVICE).add_(away)
    assert ledger.waits["here"] == 4


def test_in_place_operations_change_the_tensor_they_were_given() -> None:
    with booked(anywhere, 4):
        away = Away(torch.zeros(3))
        assert away[1:].add_(1) is not away
        assert away.add_(1) is away
    assert away.held.tolist() == [1.0, 2.0, 2.0]


def test_tensors_of_the_host_with_dimensions_are_refused() -> None:
    with booked(anywhere, 4):
        away = Away(torch.ones(3))
        with pytest.raises(RuntimeError, match="same device"):
            away * torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.stack([away, torch.ones(3)])
    with pytest.raises(RuntimeError, match="outside"):
        away * 2


@pytest.mark.parametrize(
    "need",
    [
        lambda x: x.double(),
        lambda x: x.to("cpu", torch.float64),
        lambda x: torch.ones(3, dtype=torch.float64).copy_(x),
        lambda x: torch.zeros(3, dtype=torch.float64, device=DEVICE),
        lambda x: torch.zeros_like(x, dtype=torch.complex128),
        lambda x: torch.tensor([1.0], dtype=torch.float64, device=DEVICE),
        lambda x: torch.ones(3, dtype=torch.float64).to(DEVICE),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: Away(torch.ones(3, dtype=torch.float64)).float(),
    ],
)
def test_a_device_without_float64_refuses_it(need: Callable[[Tensor], Tensor]) -> None:
    with booked():
        need(Away(torch.ones(3)))
    with booked(float64=False), pytest.raises(TypeError, match="float64"):
        need(Away(torch.ones(3)))


def test_a_device_without_float64_does_all_else() -> None:
    with booked(float64=False):
        away = Away(torch.ones(3))
        assert away.cpu().double().sum().item() == 3
        assert torch.ones(3, dtype=torch.float64).to(DEVICE, torch.float32).dtype == torch.float32
        assert (away * torch.tensor(2.0, dtype=torch.float64)).tolist() == [2.0, 2.0, 2.0]
