# SPDX-License-Identifier: GPL-3.0-or-later
"""What a device is asked beside the picture's work: to try a kernel when nobody waits, and to time it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

Work = Callable[[], object]
Stopwatch = Callable[[Work], float]
"""Seconds that a device takes over some work."""
QUIET_S = 0.2
"""A pause between two calls that is long enough to begin a trial in."""


class Workbench(Protocol):
    """Where kernels are tried."""

    def has_kernels(self, device: torch.device) -> bool:
        """Whether it is worth asking: a kernel may run there, and can be timed."""

    def later(self, work: Work, last_call: Callable[[], float]) -> None:
        """Have ``work`` done when nobody waits for it.

        ``last_call`` tells when, by :func:`time.monotonic`, an operation was last asked for.
        """

    def aside(self, device: torch.device) -> AbstractContextManager[Stopwatch]:
        """A place on the device to work in without holding up others, and its stopwatch."""


class SideStream:
    """A thread and a stream of their own.

    Compiling takes a kernel a second of Python, during which other threads run at half their speed. While
    pictures are made an operation is asked for in every round, so the thread waits until none was for
    :data:`QUIET_S`: then the host only waits for the device, in a long round, or there is no picture in the
    making. A trial takes the device itself some milliseconds.
    """

    def has_kernels(self, device: torch.device) -> bool:
        return device.type != "cpu" and hasattr(getattr(torch, device.type, None), "Stream")

    def later(self, work: Work, last_call: Callable[[], float]) -> None:
        def run() -> None:
            while (left := last_call() + QUIET_S - time.monotonic()) > 0:
                time.sleep(left)
            work()

        # A daemon, as ComfyUI's own worker is: a trial must not keep a process alive.
        threading.Thread(target=run, name="dizzydiff-kernels", daemon=True).start()

    @contextlib.contextmanager
    def aside(self, device: torch.device) -> Iterator[Stopwatch]:
        module: Any = torch.get_device_module(device)
        with module.device(device):
            module.synchronize()  # what the trial reads was written on another stream
            stream = module.Stream()
            with module.stream(stream):
                yield lambda work: _seconds(module, stream, work)
            stream.synchronize()


def _seconds(module: Any, stream: Any, work: Work) -> float:
    """By the device's own clock, from what it does before the work to what it does after it."""
    begin, end = (module.Event(enable_timing=True) for _ in range(2))
    begin.record(stream)
    work()
    end.record(stream)
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes it the device that kernels are launched on; a host has no such thing."""
    return (
        contextlib.nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
    )
