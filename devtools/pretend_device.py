# SPDX-License-Identifier: GPL-3.0-or-later
"""A device that is not there: its tensors live in the host's memory, follow the rules of a GPU's, and every
operation is booked.

What a GPU would be asked to do can be counted on any machine: kernels launched, times the host waits for the
device. And code that would fail on a GPU, because it mixes tensors of two devices, fails here; as does, where
that is asked for, what needs float64, which Apple's GPUs and some of Intel's have not.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
DEVICE = torch.device("lazy", 0)
"""Of a type that PyTorch knows and has no code for, so that nothing reaches it but through here."""
READS = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal)
"""Operations whose result the host needs before it can go on."""
COPIES = (aten.copy_, aten._to_copy)
MIXES = (*COPIES, aten.index, aten.index_put, aten.index_put_)
"""Operations that take tensors of the host beside the device's."""
SHAPES_ONLY = (
    aten.new_full,
    aten.new_empty,
    aten.new_zeros,
    aten.new_ones,
    aten.zeros_like,
    aten.ones_like,
    aten.empty_like,
    aten.full_like,
    aten.randn_like,
)
"""Operations that take only the shape of their input."""
WIDE = (torch.float64, torch.complex128)
"""What a device without float64 refuses."""
FROM_VALUES = (torch.tensor, torch.as_tensor, torch.asarray)
"""Functions that PyTorch fills below the level where a mode sees them."""


class Away(Tensor):
    """A tensor on the device; ``held`` is where it is in truth."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Away:
        away: Away = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        away.held = held
        return away

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{func} on a tensor of the pretended device, outside `booked`")


class Ledger(TorchDispatchMode):
    """Books by place of the code; ``place(frame)`` says which place a stack frame belongs to."""

    def __init__(self, place: Callable[[FrameType], str], latent_bytes: int, float64: bool) -> None:
        super().__init__()
        self._place, self._latent_bytes, self._float64 = place, latent_bytes, float64
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.passes: Counter[str] = Counter()
        """Latents read and written by operations on whole latents."""
        self.host_operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, operation, place = kwargs or {}, func.overloadpacket, self._place(sys._getframe(1))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        away = {id(tensor.held): tensor for tensor in given if isinstance(tensor, Away)}
        wanted = kwargs.get("device")
        to_device = (
            torch.device(wanted) == DEVICE
            if wanted is not None
            else bool(away) and operation not in READS[:1]
        )
        _refuse_mixtures(operation, given)
        if wanted is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        result = func(
            *tree_map_only(Away, lambda tensor: tensor.held, args),
            **tree_map_only(Away, lambda tensor: tensor.held, kwargs),
        )
        if not self._float64 and (away or to_device):
            _refuse_float64(operation, [*away.values(), *tree_leaves(result)])
        if to_device:
            result = tree_map_only(
                Tensor, lambda made: away[id(made)] if id(made) in away else Away(made), result
            )
        if away or to_device:
            self._book(func, place, args, kwargs, given, result)
        elif not func.is_view:
            self.host_operations[place] += 1
        return result

    def _book(
        self, func: Any, place: str, args: tuple, kwargs: dict[str, Any], given: list[Tensor], result: Any
    ) -> None:
        operation = func.overloadpacket
        crosses = (
            operation in COPIES and len({isinstance(t, Away) for t in (*given, *tree_leaves(result))}) == 2
        )
        blocks = crosses and not (kwargs.get("non_blocking") or (args[2:] and args[2]))
        chooses = operation is aten.index and any(t.dtype == torch.bool for t in given[1:])
        if operation in READS or blocks or chooses:
            self.waits[place] += 1
        if not func.is_view and operation not in READS[:1]:
            self.launches[place] += 1
            touched = [*tree_leaves(result), *(() if operation in SHAPES_ONLY else given)]
            whole = sum(t.nbytes for t in touched if isinstance(t, Away) and t.nbytes >= self._latent_bytes)
            self.passes[place] += whole / self._latent_bytes  # type: ignore[assignment]


def _refuse_mixtures(operation: Any, given: list[Tensor]) -> None:
    """What CUDA allows: beside the device's tensors, of the host's only those with no dimension."""
    away, strangers = (
        any(isinstance(tensor, Away) is each and (each or tensor.ndim) for tensor in given)
        for each in (True, False)
    )
    if away and strangers and operation not in MIXES:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {operation} got {DEVICE} and cpu."
        )


def _refuse_float64(operation: Any, tensors: list[Any]) -> None:
    """As Metal does, in its words. A conversion on the way to the host is refused too: whether the device or
    the host would make it is up to the driver.
    """
    if any(isinstance(tensor, Tensor) and tensor.dtype in WIDE for tensor in tensors):
        raise TypeError(
            f"Cannot convert a tensor of {DEVICE} to float64, which that device doesn't support: {operation}."
        )


class _Factories(TorchFunctionMode):
    """Copies what is filled from values on the host, or turned into them, as PyTorch does below the reach of
    modes.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.tolist and isinstance(args[0], Away):
            return args[0].cpu().tolist()
        if (
            func in FROM_VALUES
            and kwargs.get("device") is not None
            and torch.device(kwargs["device"]) == DEVICE
        ):
            numbers = tree_map_only(Away, lambda tensor: tensor.item() if tensor.ndim == 0 else tensor, args)
            return func(*numbers, **{**kwargs, "device": None}).to(DEVICE)
        return func(*args, **kwargs)


def _anywhere(frame: FrameType) -> str:
    return "anywhere"


@contextlib.contextmanager
def booked(
    place: Callable[[FrameType], str] = _anywhere, latent_bytes: int = 1, *, float64: bool = True
) -> Iterator[Ledger]:
    """Within, on this thread, tensors of :data:`DEVICE` can be made and computed with.

    ``latent_bytes``: what counts as a latent. ``float64``: whether the device has it; where not, whatever
    would make, hold or read a float64 tensor there raises TypeError, as on Apple's GPUs.
    """
    with _Factories(), Ledger(place, latent_bytes, float64) as ledger:
        yield ledger
