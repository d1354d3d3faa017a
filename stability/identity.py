# SPDX-License-Identifier: GPL-3.0-or-later
"""Which model was measured: a hash of everything that changes what a MODEL answers.

Patches are closures, partials and objects of anybody's, so values are read for what they hold, however
nested: numbers, text, tensors, code. What cannot be read has no hash.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import struct
import threading
import types
import uuid
import weakref
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.fingerprint import fingerprint

MAX_VALUES = 4096
"""Of a tensor, evenly spaced, that are read."""
MAX_DEPTH = 60
MAX_OBJECTS = 200_000
PLACES = ("multigpu_clones", "multigpu_thread_pool", "multigpu_options", "dizzydiff_devices")
"""Options that say where a model runs, which does not change what it answers."""
PARTS = (
    "patches",
    "hook_patches",
    "object_patches",
    "weight_wrapper_patches",
    "wrappers",
    "callbacks",
    "injections",
    "attachments",
)
"""Attributes of a ModelPatcher that change its model."""
SYNCHRONISATION = (type(threading.Lock()), type(threading.RLock()), threading.Event, threading.Condition)
SIMPLE = (bool, int, float, complex, str, bytes)
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
"""What every module has of its own."""
POINTER_BYTES = struct.calcsize("P")
"""An object of Python has room for its slots, its dict and its weak references; what has more is made in C,
and hides it: iterators, views, locks.
"""
BY_TYPE = (*SYNCHRONISATION, threading.local, uuid.UUID, torch.device, type(NotImplemented), type(...))
"""Have no value that could change an answer."""


class Unreadable(Exception):
    """Why two values cannot be told apart: which of them is of a type that shows nothing."""


def identity(model: Any) -> str:
    """64 hexadecimal digits of a MODEL: its weights as they are in the file, its sampling, and all patches,
    hooks, wrappers and options with what they hold. Raises Unreadable.
    """
    reader = _Reader()
    reader.read_model(model, "model")
    return reader.hash.hexdigest()


def digest_of(value: Any) -> str:
    """64 hexadecimal digits of any value. Raises Unreadable."""
    reader = _Reader()
    reader.read(value, type(value).__name__)
    return reader.hash.hexdigest()


def conditioning_digest(conditioning: Iterable[Any]) -> str:
    """64 hexadecimal digits of how a CONDITIONING changes the model: guidance, strengths, ranges, areas, what
    is attached, and the weights of attached networks. Raises Unreadable.

    What is asked for does not count: prompts, and the contents of pictures, masks and hints.
    """
    reader = _Reader(contents=False)
    reader.read(list(conditioning), "conditioning")
    return reader.hash.hexdigest()


@dataclass
class _Reader:
    """Feeds a hash with values in an order of their own."""

    contents: bool = True
    """Whether tensors, sentences and private attributes count."""
    hash: Any = field(default_factory=hashlib.sha256)
    known: dict[int, str] = field(default_factory=dict)
    """Parts of the model itself, by name."""
    open: dict[int, int] = field(default_factory=dict)
    """Objects that are being read, and how deep they lie: an object may hold itself."""
    done: dict[tuple[int, bool], tuple[str, Any]] = field(default_factory=dict)
    """Digests of objects that were read, which are kept so that nothing else has their id."""

    def feed(self, *tokens: Any) -> None:
        for token in tokens:
            self.hash.update(f"{token}\0".encode(errors="surrogatepass"))

    def read(self, value: Any, path: str) -> None:
        """Raises Unreadable."""
        if value is None or isinstance(value, Tensor):
            self._tensor(value, path)
        elif isinstance(value, enum.Enum):
            self.feed(type(value).__qualname__, value.name)
        elif isinstance(value, str) and not self.contents and " " in value:
            self.feed("text")
        elif isinstance(value, SIMPLE):
            self.feed(type(value).__name__, repr(value))
        elif isinstance(value, (np.generic, torch.dtype, torch.layout, range, slice, PurePath)):
            self.feed(type(value).__name__, value)
        elif isinstance(value, type):
            self.feed(value.__module__, value.__qualname__)
        elif isinstance(value, (types.ModuleType, logging.Logger)):
            self.feed(getattr(value, "__name__", "logger"))
        elif isinstance(value, BY_TYPE) or type(value) is object:
            self.feed(type(value).__name__)
        elif id(value) in self.known:
            self.feed("of the model", self.known[id(value)])
        elif id(value) in self.open:
            self.feed("holds itself", len(self.open) - self.open[id(value)])
        else:
            self.feed(self._digest(value, path))

    def _digest(self, value: Any, path: str) -> str:
        """Of a compound: equal ones have equal digests, wherever they are found."""
        key = (id(value), self.contents)
        if key not in self.done:
            if len(self.open) > MAX_DEPTH or len(self.done) > MAX_OBJECTS:
                raise Unreadable(f"{path[:200]} holds more than can be read")
            self.open[id(value)] = len(self.open)
            part = replace(self, hash=hashlib.sha256())
            try:
                part._compound(value, path)
            except Unreadable:
                raise
            except Exception as error:  # properties and slots of anybody's objects may do anything
                raise Unreadable(f"{path} cannot be read ({type(error).__name__}: {error})") from error
            del self.open[id(value)]
            self.done[key] = part.hash.hexdigest(), value
        return self.done[key][0]

    def read_model(self, model: Any, path: str) -> None:
        """A ModelPatcher. Raises Unreadable."""
        self.known.update({id(module): name for name, module in model.model.named_modules()})
        self._classes(model.model, path)
        self.feed(fingerprint(model))
        settings = getattr(model.model, "model_config", None)
        for name in ("unet_config", "sampling_settings"):
            self.read(getattr(settings, name, None), f"{path}/{name}")
        sampling = model.get_model_object("model_sampling")
        self.known.pop(id(sampling), None)
        self.read(sampling, f"{path}/model_sampling")
        for part in PARTS:
            self.read(getattr(model, part, None), f"{path}/{part}")
        others = {key: value for key, value in model.additional_models.items() if key != "multigpu"}
        self.read(others, f"{path}/additional_models")
        options = {key: value for key, value in model.model_options.items() if key not in PLACES}
        self.read(options, f"{path}/model_options")

    def _tensor(self, value: Tensor | None, path: str) -> None:
        if not self.contents:
            self.feed("tensor or none")  # caches of a ControlNet are one or the other
            return
        if value is None:
            self.feed("none")
            return
        try:
            few = value.detach().flatten()[:: max(1, value.numel() // MAX_VALUES)].cpu()
            numbers = few.to(torch.complex128 if few.is_complex() else torch.float64).numpy().tobytes()
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise Unreadable(f"{path} is a tensor that cannot be read ({error})") from error
        self.feed(tuple(value.shape), value.dtype, hashlib.sha256(numbers).hexdigest())

    def _compound(self, value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            self._mapping(value, path)
        elif isinstance(value, (list, tuple)):
            self.feed(type(value).__name__, len(value))
            for n, item in enumerate(value):
                self.read(item, f"{path}/{n}")
        elif isinstance(value, Set):
            self.feed("set", *sorted(digest_of(item) for item in value))
        elif isinstance(value, np.ndarray):
            self.read(torch.from_numpy(np.ascontiguousarray(value)), path)
        elif isinstance(value, functools.partial):
            self.read([value.func, value.args, value.keywords], path)
        elif isinstance(value, (types.MethodType, types.BuiltinFunctionType)):
            self.feed("method", value.__name__)
            self.read(value.__self__, f"{path}/self")
            if isinstance(value, types.MethodType):
                self.read(value.__func__, path)
        elif isinstance(value, functools._lru_cache_wrapper):  # what a cache holds changes no answer
            self.read(value.__wrapped__, path)
        elif isinstance(value, types.FunctionType):
            self._function(value, path)
        elif isinstance(value, weakref.ref):
            self.read(value(), path)
        elif isinstance(value, torch.Generator):
            self.read(value.get_state(), path)
        elif hasattr(value, "model_options") and hasattr(value, "object_patches"):
            replace(self, contents=True).read_model(value, path)
        elif isinstance(value, nn.Module):
            self._module(value, path)
        else:
            self._object(value, path)

    def _mapping(self, value: Mapping, path: str) -> None:
        keys = list(value)
        if all(isinstance(key, SIMPLE) for key in keys):
            keys.sort(key=repr)
        self.feed("mapping", len(keys))
        for key in keys:
            self.read(key, f"{path}/key")
            reader = replace(self, contents=True) if key == "hooks" else self  # their tensors are weights
            reader.read(value[key], f"{path}/{key}")

    def _function(self, value: types.FunctionType, path: str) -> None:
        """Its code, and the values that it was made with and reads."""
        self.feed(value.__module__, value.__qualname__)
        self._code(value.__code__)
        self.read(value.__defaults__, f"{path}/defaults")
        self.read(value.__kwdefaults__, f"{path}/defaults")
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                held = cell.cell_contents
            except ValueError:  # not assigned yet
                held = None
            self.read(held, f"{path}/{name}")
        for name in value.__code__.co_names:
            if isinstance(constant := value.__globals__.get(name), SIMPLE):
                self.read(constant, f"{path}/{name}")

    def _code(self, code: types.CodeType) -> None:
        self.feed(code.co_code.hex(), code.co_names, code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.read(constant, code.co_qualname if hasattr(code, "co_qualname") else code.co_name)

    def _module(self, value: nn.Module, path: str) -> None:
        """Weights, settings and submodules, without what loading it onto a device changes."""
        reader = replace(self, contents=True)
        held = {
            name: item
            for name, item in vars(value).items()
            if name not in MODULE_ATTRIBUTES and not name.startswith(("comfy_", "dizzydiff_"))
        }
        reader._classes(value, path)
        reader.read(held, path)
        for part in (value._parameters, value._buffers, value._modules):
            reader.read(dict(part), path)

    def _object(self, value: Any, path: str) -> None:
        kind = type(value)
        slots = [name for base in kind.__mro__ for name in _slots(base)]
        pointers = len(slots) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
        if kind.__basicsize__ > object.__basicsize__ + POINTER_BYTES * pointers:
            raise Unreadable(f"{path} is of type {type(value).__qualname__}, which shows nothing of itself")
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        held |= getattr(value, "__dict__", {})
        if not self.contents:
            held = {name: item for name, item in held.items() if not name.startswith("_")}
        self._classes(value, path)
        self.read(held, path)

    def _classes(self, value: Any, path: str) -> None:
        """Of an object, by name; those made in a function with what they were made of."""
        for kind in type(value).__mro__[:-1]:
            self.feed(kind.__module__, kind.__qualname__)
            if "<locals>" in kind.__qualname__:
                made = {name: item for name, item in vars(kind).items() if _is_value(item)}
                self.read(made, f"{path}/{kind.__name__}")


def _slots(kind: type) -> tuple[str, ...]:
    names = getattr(kind, "__slots__", ())
    return (names,) if isinstance(names, str) else tuple(names)


def _is_value(item: Any) -> bool:
    return isinstance(item, (*SIMPLE, types.FunctionType, Tensor))
