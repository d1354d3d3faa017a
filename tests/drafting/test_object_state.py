# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever keeps something from one call to the next is seen, wherever it is kept; whoever does not, is
not.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dizzydiff.drafting.object_state import Change, ObjectState

CALLS, SHARED = 0, [0]


def by_closure() -> Callable[[], Any]:
    calls = 0

    def patch() -> None:
        nonlocal calls
        calls += 1

    return patch


def by_global() -> None:
    global CALLS
    CALLS += 1


def by_helper() -> None:
    by_global()


def by_list_of_the_module() -> None:
    SHARED[0] += 1


def by_default(kept: list[int] = [0]) -> None:  # noqa: B006
    kept[0] += 1


class Base:
    calls = 0

    def __call__(self) -> None:
        raise NotImplementedError


class ByAttribute(Base):
    def __call__(self) -> None:
        self.calls += 1


class ByClass(Base):
    def __call__(self) -> None:
        type(self).calls += 1


class BySlot(Base):
    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept = 0

    def __call__(self) -> None:
        self.kept += 1


class ByGlobal(Base):
    def __call__(self) -> None:
        by_global()


class Options(dict):
    kept = 0


def by_subclass() -> Callable[[], None]:
    options = Options()

    def patch() -> None:
        options.kept += 1

    return patch


def by_container(kept: Any, act: Callable[[Any], Any]) -> Callable[[], Callable[[], Any]]:
    return lambda: lambda kept=kept: act(kept)


REMEMBERING = {
    "closure": by_closure,
    "global": lambda: by_global,
    "global of a helper": lambda: by_helper,
    "list of the module": lambda: by_list_of_the_module,
    "default": lambda: by_default,
    "attribute": ByAttribute,
    "class": ByClass,
    "slot": BySlot,
    "global of a class": ByGlobal,
    "attribute of a dict": by_subclass,
    "method": lambda: ByAttribute().__call__,
    "partial": lambda: functools.partial(by_default, [0]),
    "deque": by_container(collections.deque([1, 2]), lambda kept: kept.rotate()),
    "nested": by_container({"a": [{"b": 0}]}, lambda kept: kept["a"][0].update(b=kept["a"][0]["b"] + 1)),
    "tensor in place": by_container(torch.zeros(3), lambda kept: kept.add_(1)),
    "array in place": by_container(np.zeros(3), lambda kept: np.add(kept, 1, out=kept)),
    "counter": by_container(itertools.count(), next),
}


@pytest.mark.parametrize("make", REMEMBERING.values(), ids=REMEMBERING)
@pytest.mark.parametrize("wrap", [lambda patch: [patch], lambda patch: [{"patches": {"key": [patch]}}]])
def test_what_is_kept_from_call_to_call_is_seen(make: Callable[[], Any], wrap: Any) -> None:
    patch = make()
    roots = wrap(patch)
    before = ObjectState(roots)
    assert before.change(ObjectState(roots)) == Change(), "looking changes nothing"
    patch()
    first = ObjectState(roots)
    patch()
    assert before.change(first).kept or (
        before.change(first).filled and first.change(ObjectState(roots)).kept
    )


def test_what_is_only_filled_is_told_apart_from_what_is_replaced() -> None:
    cache: dict[str, Any] = {"hint": None}
    before = ObjectState([cache])
    cache["hint"] = torch.zeros(2)
    cache["more"] = 1
    filled = ObjectState([cache])
    assert before.change(filled).kept is None and before.change(filled).filled
    cache["hint"] = torch.ones(2)
    assert filled.change(ObjectState([cache])).kept


def test_a_container_that_lost_something_was_not_only_filled() -> None:
    """The last step's entry makes way for this step's, as in a cache of one."""
    cache = {"step 1": 0.5}
    before = ObjectState([cache])
    cache.clear()
    cache["step 2"] = 0.5
    assert before.change(ObjectState([cache])).kept


def test_a_change_anywhere_in_a_tensor_is_seen() -> None:
    cache = [torch.zeros(1000)]
    before = ObjectState([cache])
    cache[0][500:] += 1
    assert before.change(ObjectState([cache])).kept


@pytest.mark.parametrize("name", ["closure", "global", "attribute", "class", "deque", "nested"])
def test_what_was_kept_is_put_back(name: str) -> None:
    patch = REMEMBERING[name]()
    before = ObjectState([patch])
    for _ in range(3):
        patch()
    before.restore()
    assert before.change(ObjectState([patch])) == Change()


def test_who_refers_to_an_object_is_found_by_name() -> None:
    network = torch.nn.Linear(2, 2)

    def patch() -> torch.Tensor:
        return network(torch.ones(2))

    state = ObjectState([{"patches": [patch]}])
    assert "test_who_refers_to_an_object_is_found_by_name" in (state.owner_of([network]) or "")
    assert state.owner_of([torch.nn.Linear(2, 2)]) is None


def test_networks_and_what_is_named_are_not_looked_into() -> None:
    network, hook = torch.nn.Linear(2, 2), by_closure()
    before = ObjectState([{"network": network, "hook": hook}], but=[hook])
    network.extra = 1  # type: ignore[assignment]
    hook()
    assert before.change(ObjectState([{"network": network, "hook": hook}], but=[hook])).kept is None
