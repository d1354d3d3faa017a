# SPDX-License-Identifier: GPL-3.0-or-later
"""Model calls by the clock: student beside teacher, batches beside calls, launch beside device time, several
threads on one device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._gpu_networks import Network, inside_sampler, networks
from ._gpu_time import profiled, timed, wait

Rows = Iterator[dict[str, Any]]
SIZES = (512, 768, 1024)
TOY_SIZE = 64


def student_step(device: torch.device, quick: bool) -> Rows:
    """A student's step beside its teacher's step with CFG, guider and sampler included."""
    for family, pixels in (("SD1.5", 512), ("SD1.5", 768), ("SDXL", 1024)):
        walls = {}
        for name, cfg in ((family, 4.0), (f"{family} student", 1.0)):
            network = networks(device, quick)[name]()
            walls[name] = _guided(network, TOY_SIZE if quick else pixels, 1, cfg, 3 if quick else 20)
        teacher, student = walls.values()
        yield {
            "network": network.name,
            "pixels": TOY_SIZE if quick else pixels,
            "student_step_s": student,
            "teacher_cfg_step_s": teacher,
            "ratio": student / teacher,
        }


def batches(device: torch.device, quick: bool) -> Rows:
    """A batch of k states beside k calls: what Draft Devices' "auto" decides by is ``share``."""
    for name in ("SD1.5", "SDXL", "Flux"):
        network = networks(device, quick)[name]()
        for pixels in (TOY_SIZE,) if quick else SIZES:
            one = _guided(network, pixels, 1, 1.0, 3 if quick else 10)
            for k in (2, 4) if quick else range(2, 9):
                together = _guided(network, pixels, k, 1.0, 3 if quick else 5)
                yield {
                    "network": network.name,
                    "pixels": pixels,
                    "k": k,
                    "call_s": one,
                    "batch_s": together,
                    "share": together / (k * one),
                }


def _guided(network: Network, pixels: int, rows: int, cfg: float, repeats: int) -> float:
    """Seconds of a guided prediction of ``rows`` states."""
    walls = []

    def body(model: Callable[[Tensor], Tensor], x: Tensor) -> None:
        walls.append(timed(lambda: model(x), x.device, repeats).wall)

    with torch.inference_mode():
        inside_sampler(network, network.latent(pixels, rows), cfg, body)
    return walls[0]


def _bare(network: Network, pixels: int) -> Callable[[], Tensor]:
    """A call of the model without guider."""
    device = network.patcher.load_device
    x, sigma = network.latent(pixels).to(device), torch.full([1], 0.9, device=device)
    return lambda: network.patcher.model.apply_model(x, sigma, c_crossattn=network.context, **network.raw)


def launches(device: torch.device, quick: bool) -> Rows:
    """Until a call returns, until the device is done, how long it was busy: little of it, and launching is
    the limit.
    """
    for name in ("SD1.5", "SDXL", "Flux"):
        network = networks(device, quick)[name]()
        for pixels in (TOY_SIZE,) if quick else (256, *SIZES):
            with torch.inference_mode():
                call = _bare(network, pixels)
                taken = timed(call, device, 3 if quick else 20)
                yield {
                    "network": network.name,
                    "pixels": pixels,
                    "launch_s": taken.launch,
                    "wall_s": taken.wall,
                    "latent_bytes": network.latent(pixels).nbytes,
                    "conditioning_bytes": network.context.nbytes,
                    **profiled(call, device),
                }


def threads(device: torch.device, quick: bool) -> Rows:
    """n threads that each make a call at the same time on this one device, a stream each, beside n calls
    after one another.
    """
    for name in ("SD1.5", "Flux"):
        network = networks(device, quick)[name]()
        for pixels in (TOY_SIZE,) if quick else (512, 1024):
            with torch.inference_mode():
                one = timed(_bare(network, pixels), device, 3 if quick else 10)
            for n in (2,) if quick else (2, 4, 8):
                together = timed(partial(_at_once, network, pixels, n), device, 3 if quick else 10)
                yield {
                    "network": network.name,
                    "pixels": pixels,
                    "threads": n,
                    "call_s": one.wall,
                    "call_launch_s": one.launch,
                    "together_s": together.wall,
                    "together_launch_s": together.launch,
                    "share": together.wall / (n * one.wall),
                }


def _at_once(network: Network, pixels: int, n: int) -> None:
    device = network.patcher.load_device

    def work() -> None:
        with torch.inference_mode():
            if device.type == "cuda":
                with torch.cuda.stream(torch.cuda.Stream(device)):
                    _bare(network, pixels)()
            else:
                _bare(network, pixels)()

    workers = [threading.Thread(target=work) for _ in range(n)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wait(device)
