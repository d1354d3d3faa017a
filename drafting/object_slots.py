# SPDX-License-Identifier: GPL-3.0-or-later
"""What an object of Python holds directly, and how to put it back."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PLAIN = (int, float, complex, str, bytes, bool, type(None))
CLOSED = (types.ModuleType, type, torch.nn.Module, torch.dtype, torch.device, types.BuiltinFunctionType)
"""What is not looked into: code, networks, and what cannot change."""
KEPT_BY_CLASSES = (*PLAIN, list, dict, set, deque, Tensor)
"""Attributes of a class that its objects may share their memory by; all others are code."""
Held = tuple[Hashable, Any, Any, Callable[[], None] | None]
"""(key, container, value, how to put the value back)."""


@dataclass(frozen=True)
class Keys:
    """What a container holds values for."""

    keys: tuple


def slots_of(value: Any) -> Iterator[Held]:
    """All that an object holds directly."""
    if isinstance(value, dict):
        yield "contents", value, Keys(tuple(value)), functools.partial(_refill, value, dict(value))
        yield from ((("item", key), value, held, None) for key, held in list(value.items()))
    elif isinstance(value, (list, deque)):
        yield "contents", value, Keys(tuple(map(id, value))), functools.partial(_reset, value, list(value))
        yield from ((("item", i), value, held, None) for i, held in enumerate(list(value)))
    elif isinstance(value, (tuple, set, frozenset)):
        yield from ((("item", i), value, held, None) for i, held in enumerate(value))
    elif isinstance(value, functools.partial):
        parts = (value.func, *value.args, value.keywords)
        yield from ((("part", i), value, held, None) for i, held in enumerate(parts))
    elif isinstance(value, types.MethodType):
        yield "self", value, value.__self__, None
        yield "function", value, value.__func__, None
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    yield from _of_instance(value)


def written_into(network: torch.nn.Module) -> Iterator[Held]:
    """The public attributes of a network's own object, where patches keep what they keep."""
    own = {name: held for name, held in vars(network).items() if not name.startswith("_")}
    yield "attributes", network, Keys(tuple(own)), functools.partial(_write_back, network, own)
    yield from ((("attribute", name), network, held, None) for name, held in own.items())


def _of_function(function: types.FunctionType) -> Iterator[Held]:
    """Its closure, its defaults, and the globals that it names, with the functions of its own module."""
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not assigned yet
            yield "cell", cell, None, None
        else:
            yield "cell", cell, held, functools.partial(setattr, cell, "cell_contents", held)
    yield "defaults", function, function.__defaults__, None
    yield "keyword defaults", function, function.__kwdefaults__, None
    own = function.__globals__
    for name in _names_in(function.__code__):
        held = own.get(name)
        if name not in own or isinstance(held, CLOSED):
            continue
        if isinstance(held, types.FunctionType):
            if held.__module__ == function.__module__:
                yield ("global", name), own, held, None
            continue
        yield ("global", name), own, held, functools.partial(own.__setitem__, name, held)


def _names_in(code: types.CodeType) -> set[str]:
    """Names that a function's code, and that of the functions inside it, may find in its module."""
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return {*code.co_names, *(name for each in inner for name in _names_in(each))}


def _of_instance(value: Any) -> Iterator[Held]:
    """Its attributes, those of its class that are no code, and what it does when it is called."""
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        keys = Keys(tuple(attributes))
        yield "contents", attributes, keys, functools.partial(_refill, attributes, dict(attributes))
        yield from ((("item", name), attributes, held, None) for name, held in list(attributes.items()))
    if type(value).__module__ in ("builtins", "functools", "collections"):
        return
    for kind in type(value).__mro__:
        if kind.__module__ in ("builtins", "abc", "typing"):
            continue
        for name in _slot_names(kind):
            yield ("slot", name), value, getattr(value, name, None), None
        kept = {
            name: held
            for name, held in vars(kind).items()
            if isinstance(held, KEPT_BY_CLASSES) and not name.startswith("__")
        }
        yield "class contents", kind, Keys(tuple(kept)), None
        for name, held in kept.items():
            yield ("class", name), kind, held, functools.partial(setattr, kind, name, held)
    if callable(value) and isinstance(type(value).__call__, types.FunctionType):
        yield "call", value, type(value).__call__, None


def _slot_names(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _refill(container: dict, contents: dict) -> None:
    container.clear()
    container.update(contents)


def _reset(container: list | deque, contents: list) -> None:
    container.clear()
    container.extend(contents)


def _write_back(network: torch.nn.Module, own: dict) -> None:
    attributes = vars(network)
    for name in [name for name in attributes if name not in own and not name.startswith("_")]:
        del attributes[name]
    attributes.update(own)
