# SPDX-License-Identifier: GPL-3.0-or-later
"""Wall, launch and device time of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Medians in seconds: until the call returned to the host, and until the device was done as well."""

    launch: float
    wall: float


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def timed(call: Callable[[], Any], device: torch.device, repeats: int) -> Timing:
    """After one call that warms up. On a CPU both times are the same."""
    launches, walls = [], []
    for _ in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        call()
        launches.append(time.perf_counter() - started)
        wait(device)
        walls.append(time.perf_counter() - started)
    return Timing(statistics.median(launches[1:]), statistics.median(walls[1:]))


def profiled(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """What torch.profiler sees of one warm CUDA call: seconds the device was busy, kernels, and waits of the
    host for the device.

    Empty elsewhere.
    """
    if device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    call()
    wait(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        wait(device)
    busy = kernels = waits = 0
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            busy, kernels = busy + event.self_device_time_total, kernels + 1
        waits += event.name in ("cudaStreamSynchronize", "cudaEventSynchronize")
    return {"device_busy_s": busy * 1e-6, "kernels": kernels, "host_waits": waits}
