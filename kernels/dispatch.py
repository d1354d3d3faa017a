# SPDX-License-Identifier: GPL-3.0-or-later
"""Which implementation of an operation runs: PyTorch's, until a kernel has qualified itself where it runs."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .device import SideStream, Workbench, current
from .qualification import CONCLUSIVE, Operation, Verdict, qualify

log = logging.getLogger("dizzydiff")
ALIGNMENT = 16
"""Bytes to which data are aligned, as compilers like it; Triton compiles anew for others."""


class Dispatcher:
    """Runs operations, and remembers which kernels have qualified.

    First uses are answered by PyTorch, and a copy of their tensors is put aside for the trial. One trial is
    under way at a time, so that the copies of one call are all the memory it ever takes; what is asked for
    meanwhile is tried another time. Any thread may call it.
    """

    def __init__(self, workbench: Workbench | None = None) -> None:
        self._workbench = workbench or SideStream()
        self._verdicts: dict[tuple, Verdict] = {}
        self._trying = threading.Lock()
        self._last_call = 0.0

    def __call__(self, operation: Operation, tensors: Sequence[Tensor], coefficients: Any) -> Any:
        """The operation's result, by whichever implementation; the bits are the same."""
        if not self._may_try(tensors):
            return operation.reference(tensors, coefficients)
        self._last_call = time.monotonic()
        place = operation.name, tensors[0].device, shapes(tensors, coefficients)
        verdict = self._verdicts.get(place[:2]) or self._verdicts.get(place)
        if verdict is None:
            self._try(operation, place, tensors, coefficients)
        elif verdict.kernel is not None:
            try:
                with current(tensors[0].device):
                    return verdict.kernel(tensors, coefficients)
            except Exception as error:
                self._decide(place, _raised(error))
        return operation.reference(tensors, coefficients)

    def _may_try(self, tensors: Sequence[Tensor]) -> bool:
        """fp32, since half precision hides how a result was rounded, and nothing that autograd follows."""
        device = tensors[0].device
        return self._workbench.has_kernels(device) and all(
            t.device == device
            and t.dtype == torch.float32
            and t.numel() >= CONCLUSIVE
            and t.storage_offset() * t.element_size() % ALIGNMENT == 0
            and not t.requires_grad
            for t in tensors
        )

    def _try(self, operation: Operation, place: tuple, tensors: Sequence[Tensor], coefficients: Any) -> None:
        if not self._trying.acquire(blocking=False):
            return
        try:
            # The picture's own may be written to, or gone, by the time of the trial.
            copies = [tensor.clone() for tensor in tensors]
            self._workbench.later(
                lambda: self._tried(operation, place, copies, coefficients), lambda: self._last_call
            )
        except BaseException as error:  # an interruption too must not leave the place taken
            self._trying.release()
            if not isinstance(error, Exception):
                raise
            self._decide(place, _raised(error))

    def _tried(
        self, operation: Operation, place: tuple, tensors: Sequence[Tensor], coefficients: Any
    ) -> None:
        try:
            with torch.inference_mode(), self._workbench.aside(tensors[0].device) as seconds:
                verdict = qualify(operation, tensors, coefficients, seconds)
            self._decide(place, verdict)
        except Exception as error:
            self._decide(place, _raised(error))
        finally:
            self._trying.release()

    def _decide(self, place: tuple, verdict: Verdict) -> None:
        name, device, (rows, *sizes) = place
        self._verdicts[place[:2] if verdict.everywhere else place] = verdict
        chosen = "PyTorch" if verdict.kernel is None else "the Triton kernel"
        of = "" if verdict.everywhere else f" of {len(sizes)} tensors {sizes[-1]} into {rows}"
        log.info("%s%s on %s is done by %s: %s.", name, of, device, chosen, verdict.reason)


def _raised(error: Exception) -> Verdict:
    first = (str(error).splitlines() or [""])[0]
    return Verdict(None, f"the kernel raised {type(error).__name__}: {first}", everywhere=True)


def shapes(tensors: Sequence[Tensor], coefficients: Any) -> tuple:
    """What compilers and libraries choose their code by: shapes, and the number of rows of coefficients."""
    rows = len(coefficients) if isinstance(coefficients, Sequence) else 1
    return rows, *(tuple(tensor.shape) for tensor in tensors)


@functools.cache
def this_process() -> Dispatcher:
    """The one that callers share who bring none. Like any cache it saves time and changes no result."""
    return Dispatcher()
