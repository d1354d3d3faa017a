# SPDX-License-Identifier: GPL-3.0-or-later
"""What the objects behind a graph's patches hold, read without calling them.

A prediction may be drafted only if it is a function of (x, sigma, conditioning). A patch that keeps
something from one model call to the next (a cache, a momentum, a counter of steps) makes it depend on their
order. Whoever keeps something keeps it somewhere: in a closure, an attribute, a list, a dict, a global of
its module. So it is seen by looking there before and after a call.
"""

from __future__ import annotations

import functools
import itertools
import re
import types
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .object_slots import CLOSED, PLAIN, Held, Keys, slots_of, written_into

MAX_OBJECTS = 20_000
"""Looked at. What lies beyond is not watched."""
SAMPLED_VALUES = 8
"""Of each tensor, to see whether it was changed in place."""
UNNAMED = "a patch in this graph"
WRITER = "a patch that writes into the network"


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
        self,
        roots: Iterable[Any],
        *,
        constant: Iterable[Any] = (),
        closed: tuple[type, ...] = (),
        but: Iterable[Any] = (),
        networks: Iterable[torch.nn.Module] = (),
    ) -> None:
        """constant: roots whose tensors nobody changes in place; closed: further types that are not looked
        into; but: single objects that are not; networks: whose own attributes are looked at, not their
        layers.
        """
        self._slots: dict[tuple[int, Hashable], Slot] = {}
        self._alive: list[Any] = []  # an object's id stays its own for as long as it lives
        closed = (*CLOSED, *closed, Keys)
        waiting = [(root, _name(root), True) for root in roots]
        waiting += [(root, _name(root), False) for root in constant]
        seen = {id(each) for each in but}
        for network in networks:
            waiting += self._add(written_into(network), WRITER, True)
        while waiting and len(seen) < MAX_OBJECTS:
            value, owner, sampled = waiting.pop()
            if id(value) in seen or isinstance(value, (*PLAIN, Tensor, *closed)):
                continue
            seen.add(id(value))
            self._alive.append(value)
            waiting += self._add(slots_of(value), _name(value) or owner or UNNAMED, sampled)

    def _add(self, slots: Iterable[Held], owner: str, sampled: bool) -> list[tuple[Any, str, bool]]:
        """The slots of one object. What they hold is to be looked into next."""
        held_there = []
        for key, container, held, put_back in slots:
            self._slots[id(container), key] = Slot(owner, held, _token(held, sampled), put_back)
            self._alive += [container, held]
            held_there.append((held, owner, sampled))
        return held_there

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


def _is_fill(before: Any, after: Any) -> bool:
    """Whether a container gained something and lost nothing."""
    if not (isinstance(before, Keys) and isinstance(after, Keys)):
        return False
    return after.keys[: len(before.keys)] == before.keys


def _token(value: Any, sampled: bool) -> Hashable:
    if isinstance(value, PLAIN):
        return type(value).__name__, repr(value)
    if isinstance(value, Keys):
        return value
    if isinstance(value, Tensor):
        return id(value), _samples(value) if sampled else ()
    if isinstance(value, np.ndarray):
        return id(value), tuple(
            map(repr, value.reshape(-1)[:: max(1, value.size // SAMPLED_VALUES)].tolist())
        )
    if isinstance(value, itertools.count):
        return id(value), repr(value)
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
        return _name_of_method(value)
    if isinstance(value, functools.partial):
        return _name(value.func)
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__.partition('.<locals>')[0]} ({last_part(value.__module__)})"
    return f"{type(value).__qualname__} ({last_part(type(value).__module__)})"


def _name_of_method(method: types.MethodType) -> str:
    """A layer's own method is named by who holds it, one that was bound to a layer by itself."""
    if not isinstance(method.__self__, torch.nn.Module):
        return _name(method.__self__)
    own = getattr(type(method.__self__), method.__func__.__name__, None) is method.__func__
    return "" if own else _name(method.__func__)


def last_part(module: str) -> str:
    """Of a module's name. ComfyUI names those of node packs by their path."""
    return re.split(r"[./\\]", module)[-1]
