# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes a model's answers changes its digest, however deep it is held; what does not, does not."""

from __future__ import annotations

import functools
import io
import itertools
import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from dizzydiff.stability.identity import Unreadable, conditioning_digest, digest_of


def closure(strength: Any) -> Callable[[float], float]:
    return lambda x: strength * x


def defaults(strength: Any) -> Callable[[float], float]:
    def scaled(x: float, by: Any = strength) -> float:
        return by * x

    return scaled


def keyword(strength: Any) -> Callable[[float], float]:
    def scaled(x: float, *, by: Any = strength) -> float:
        return by * x

    return scaled


@dataclass
class Holder:
    strength: Any
    lock: Any = None

    def __call__(self, x: float) -> float:
        return self.strength * x

    def scaled(self, x: float) -> float:
        return self.strength * x


class Slotted:
    __slots__ = ("strength",)

    def __init__(self, strength: Any) -> None:
        self.strength = strength


def made_class(strength: Any) -> object:
    class Sampling(nn.Module):
        def timestep(self, sigma: float) -> float:
            return strength * sigma

    return Sampling()


def private(strength: Any) -> nn.Module:
    module = nn.Module()
    module._strength = strength
    return module


def buffered(strength: Any) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1)
    module[0].register_buffer("scale", torch.tensor(list(str(strength).encode()), dtype=torch.float32))
    return module


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "closure": closure,
    "default": defaults,
    "keyword": keyword,
    "partial": lambda strength: functools.partial(max, strength),
    "object": Holder,
    "bound method": lambda strength: Holder(strength).scaled,
    "slots": Slotted,
    "class made in a function": made_class,
    "module": private,
    "buffer": buffered,
    "nested": lambda strength: {"a": [(closure(functools.partial(defaults, Holder(strength))),)]},
}
VALUES = [
    (3, 4),
    (0.5, 0.7),
    ("index", "offset"),
    (True, 1),
    ([1], [2]),
    ({"a": 1}, {"b": 1}),
    ({1, 2}, {1, 3}),
]
TENSORS = (torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize(("one", "other"), [*VALUES, TENSORS], ids=str)
def test_another_value_is_another_digest(hold: Callable[[Any], Any], one: Any, other: Any) -> None:
    assert digest_of(hold(one)) == digest_of(hold(one)) != digest_of(hold(other))


def test_lambdas_that_do_something_else_differ() -> None:
    assert digest_of(lambda x: x + 1) != digest_of(lambda x: x - 1)
    assert digest_of(lambda x: x + 1) != digest_of(lambda x: x + 2)
    assert digest_of(lambda: [y + 1 for y in ()]) != digest_of(lambda: [y + 2 for y in ()])


STRENGTH = 0.5


def reads_a_constant(x: float) -> float:
    return STRENGTH * x


def test_a_function_is_another_where_a_constant_of_its_module_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(reads_a_constant)
    monkeypatch.setattr(f"{__name__}.STRENGTH", 0.7)
    assert digest_of(reads_a_constant) != before


def test_tensors_of_the_same_numbers_differ_by_shape_and_dtype() -> None:
    tensors = (torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.float16))
    assert len({digest_of(each) for each in tensors}) == 3


def test_equal_values_are_equal_wherever_they_are_held() -> None:
    shared = [1.0]
    assert digest_of([shared, shared]) == digest_of([[1.0], [1.0]])
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({1, 2, 3}) == digest_of({3, 2, 1})
    assert digest_of(Holder(1, threading.Lock())) == digest_of(Holder(1, threading.Lock()))


def test_objects_that_hold_themselves_are_read() -> None:
    def ring(strength: float) -> list[Any]:
        made: list[Any] = [strength]
        made.append(Holder(made))
        return made

    assert digest_of(ring(1.0)) == digest_of(ring(1.0)) != digest_of(ring(2.0))


class Defiant:
    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        raise OSError("no")


DEEP = functools.reduce(lambda held, _: [held], range(2000), [])


@pytest.mark.parametrize(
    "value",
    [
        io.BytesIO(),
        (n for n in ()),
        iter([1]),
        {1: 2}.values(),
        map(abs, [1]),
        itertools.repeat(1),
        (1).__add__,
        itertools.cycle([1]),
        operator.itemgetter(1),
        Defiant(),
        DEEP,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_read_has_no_digest(value: Any) -> None:
    with pytest.raises(Unreadable):
        digest_of(closure(value))


def conditioning(prompt: torch.Tensor, **changes: Any) -> list[Any]:
    options = {"pooled_output": prompt.mean(1), "guidance": 3.5, "area": (4, 4, 0, 0), "text": "a red circle"}
    return [[prompt, {**options, **changes}]]


def test_conditioning_counts_by_how_it_changes_the_model() -> None:
    prompt, other = torch.zeros(1, 77, 8), torch.ones(1, 154, 8)
    plain = conditioning_digest(conditioning(prompt))
    assert conditioning_digest(conditioning(other, text="a blue square, far away")) == plain
    with_hint = conditioning_digest(conditioning(prompt, control=Holder(torch.zeros(1, 3, 8, 8))))
    assert conditioning_digest(conditioning(prompt, control=Holder(torch.ones(1, 3, 8, 8)))) == with_hint
    cached = Holder(0.5)
    cached._hint = "moved to the device"  # type: ignore[attr-defined]
    assert conditioning_digest(conditioning(prompt, control=cached)) == conditioning_digest(
        conditioning(prompt, control=Holder(0.5))
    ), "what an object keeps for itself does not count"
    digests = {
        conditioning_digest(conditioning(prompt, **changes))
        for changes in (
            {},
            {"guidance": 10.0},
            {"guidance": [1.0, 4.0]},
            {"area": (8, 4, 0, 0)},
            {"start_percent": 0.5},
            {"reference_latents": [torch.zeros(1, 4, 8, 8)]},
            {"reference_latents_method": "index"},
            {"reference_latents_method": "offset"},
            {"control": Holder(0.5)},
            {"control": Holder(0.7)},
            {"control": Holder(nn.Linear(2, 2))},
            {"hooks": Holder(torch.zeros(3))},
            {"hooks": Holder(torch.ones(3))},
        )
    }
    assert len(digests) == 13
    assert conditioning_digest([*conditioning(prompt), *conditioning(prompt)]) != plain
