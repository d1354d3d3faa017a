# SPDX-License-Identifier: GPL-3.0-or-later
"""What the objects behind a graph's patches hold, read without calling them.

A prediction may be drafted only if it is a function of (x, sigma, conditioning). A patch that keeps something
from one model call to the next (a cache, a momentum, a counter of steps) makes it depend on their order.
Whoever
keeps something keeps it somewhere: in a closure, an attribute, a list, a dict, a global of its module. So it
is seen by looking there before and after a call.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_OBJECTS = 20_000
"""Looked at. What lies beyond is not watched."""
SAMPLED_VALUES = 8
"""Of each tensor, to see whether it was changed in place."""
UNNAMED = "a patch in this graph"
PLAIN = (int, float, complex, str, bytes, bool, type(None))
CLOSED = (types.ModuleType, type, torch.nn.Module, torch.dtype, torch.device, types.BuiltinFunctionType)
"""What is not looked into: code, networks, and what cannot change."""


@dataclass(frozen=True)
class Slot:
    """A place that holds a value: whose it is, and how to put a value back."""

    owner: str
    value: Any
    token: Hashable
    """Equal for as long as the value is the same."""
    put_back: Callable[[], None] | None = None


@dataclass(frozen=True)
class Change:
    """What became different between two looks, or None. kept: something was replaced; filled: only None
    was.
    """

    kept: str | None = None
    filled: str | None = None


class ObjectState:
    """All slots that can be reached from some objects, at one moment."""

    def __init__(
        self, roots: Iterable[Any], *, constant: Iterable[Any] = (), closed: tuple[type, ...] = ()
    ) -> None:
        """``constant``: roots whose tensors nobody changes in place; ``closed``: further types that are not
        looked into.
        """
        self._slots: dict[tuple[int, Hashable], Slot] = {}
        self._alive: list[Any] = []  # an object's id stays its own for as long as it lives
        closed = (*CLOSED, *closed, _Keys)
        waiting = [(root, _name(root), True) for root in roots]
        waiting += [(root, _name(root), False) for root in constant]
        seen: set[int] = set()
        while waiting and len(seen) < MAX_OBJECTS:
            value, owner, sampled = waiting.pop()
            if id(value) in seen or isinstance(value, (*PLAIN, Tensor, *closed)):
                continue
            seen.add(id(value))
            self._alive.append(value)
            owner = _name(value) or owner or UNNAMED
            for key, container, held, put_back in _slots_of(value):
                self._slots[id(container), key] = Slot(owner, held, _token(held, sampled), put_back)
                self._alive += [container, held]
                waiting.append((held, owner, sampled))

    def change(self, now: ObjectState) -> Change:
        """From this look to a later one at the same roots."""
        kept = filled = None
        for place, slot in self._slots.items():
            later = now._slots.get(place)
            if later is None or later.token == slot.token:
                continue
            if slot.value is None:
                filled = filled or later.owner
            elif not _is_fill(slot.value, later.value):
                kept = kept or later.owner
            else:
                filled = filled or later.owner
        return Change(kept, filled)

    def restore(self) -> None:
        """Put every value back where it was, but for tensors that were changed in place."""
        for slot in self._slots.values():
            if slot.put_back is not None:
                slot.put_back()

    def owner_of(self, objects: Iterable[Any]) -> str | None:
        """Who refers to one of these objects."""
        wanted = {id(each) for each in objects}
        return next((slot.owner for slot in self._slots.values() if id(slot.value) in wanted), None)


def _slots_of(value: Any) -> Iterator[tuple[Hashable, Any, Any, Callable[[], None] | None]]:
    """(key, container, value, how to put it back) of everything an object holds directly."""
    if isinstance(value, dict):
        yield "contents", value, _Keys(tuple(value)), functools.partial(_refill, value, dict(value))
        for key, held in list(value.items()):
            yield ("item", key), value, held, None
    elif isinstance(value, list):
        yield "contents", value, _Keys(tuple(map(id, value))), functools.partial(_reset, value, list(value))
        for i, held in enumerate(value):
            yield ("item", i), value, held, None
    elif isinstance(value, (tuple, set, frozenset)):
        for i, held in enumerate(value):
            yield ("item", i), value, held, None
    elif isinstance(value, functools.partial):
        for i, held in enumerate((value.func, *value.args, value.keywords)):
            yield ("part", i), value, held, None
    elif isinstance(value, types.MethodType):
        yield "self", value, value.__self__, None
        yield "function", value, value.__func__, None
    elif isinstance(value, types.FunctionType):
        yield from _slots_of_function(value)
    else:
        yield from _slots_of_instance(value)


def _slots_of_function(
    function: types.FunctionType,
) -> Iterator[tuple[Hashable, Any, Any, Callable[[], None] | None]]:
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not assigned yet
            held = None
            yield "cell", cell, held, None
            continue
        yield "cell", cell, held, functools.partial(setattr, cell, "cell_contents", held)
    for i, held in enumerate((function.__defaults__, function.__kwdefaults__, function.__dict__ or None)):
        yield ("default", i), function, held, None
    own = function.__globals__
    for name in function.__code__.co_names:
        held = own.get(name)
        if name in own and not isinstance(held, (*CLOSED, types.FunctionType)):
            yield ("global", name), own, held, functools.partial(own.__setitem__, name, held)


def _slots_of_instance(value: Any) -> Iterator[tuple[Hashable, Any, Any, Callable[[], None] | None]]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield (
            "contents",
            attributes,
            _Keys(tuple(attributes)),
            functools.partial(_refill, attributes, dict(attributes)),
        )
        for name, held in list(attributes.items()):
            yield ("item", name), attributes, held, None
    for kind in type(value).__mro__:
        for name in _names(kind.__dict__.get("__slots__", ())):
            held = getattr(value, name, None)
            yield ("slot", name), value, held, None


def _names(slots: Any) -> tuple[str, ...]:
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


@dataclass(frozen=True)
class _Keys:
    """What a container holds values for."""

    keys: tuple


def _is_fill(before: Any, after: Any) -> bool:
    """Whether a container gained something and lost nothing."""
    if not (isinstance(before, _Keys) and isinstance(after, _Keys)):
        return False
    return after.keys[: len(before.keys)] == before.keys


def _token(value: Any, sampled: bool) -> Hashable:
    if isinstance(value, PLAIN):
        return type(value).__name__, repr(value)
    if isinstance(value, _Keys):
        return value
    if isinstance(value, Tensor):
        return id(value), _samples(value) if sampled else ()
    return id(value)


def _samples(tensor: Tensor) -> tuple[str, ...]:
    """A few values. Versions would tell more, and tensors made in inference mode have none."""
    if tensor.numel() == 0 or tensor.is_meta or tensor.layout != torch.strided:
        return ()
    flat = tensor.detach().reshape(-1)
    few = flat[:: max(1, flat.numel() // SAMPLED_VALUES)][:SAMPLED_VALUES]
    return tuple(map(repr, few.cpu().tolist()))


def _name(value: Any) -> str:
    """What a user may know an object by; "" for what has no name of its own."""
    if isinstance(value, (dict, list, tuple, set, frozenset, *PLAIN)):
        return ""
    if isinstance(value, types.MethodType):
        return _name(value.__self__)
    if isinstance(value, functools.partial):
        return _name(value.func)
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__.partition('.<locals>')[0]} ({value.__module__})"
    return f"{type(value).__qualname__} ({type(value).__module__})"


def _refill(container: dict, contents: dict) -> None:
    container.clear()
    container.update(contents)


def _reset(container: list, contents: list) -> None:
    container[:] = contents
