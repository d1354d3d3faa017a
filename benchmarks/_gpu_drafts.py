# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine in batches on one device beside the plain sampler."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ..drafting.policies import Mode
from ._gpu_calls import TOY_SIZE
from ._gpu_networks import Network, networks
from ._gpu_passes import count, trace_seconds
from ._gpu_time import profiled, wait

MODES: tuple[Mode, ...] = ("verified", "aggressive")


def drafted(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Aggressive, so that the rounds are those of the formula: predictions of random weights say nothing of
    how far drafts are off.
    """
    for name, pixels in (("SD1.5", 512), ("SDXL", 1024), ("Flux", 512)):
        network = networks(device, quick)[name]()
        for steps in (10,) if quick else (28, 50):
            one = [_run(network, TOY_SIZE if quick else pixels, steps, 1) for _ in range(2 if quick else 4)][
                1:
            ]
            sequential = _median(one)
            for width in (4,) if quick else (2, 4, 8):
                many = [
                    _run(network, TOY_SIZE if quick else pixels, steps, width)
                    for _ in range(2 if quick else 4)
                ][1:]
                wall = _median(many)
                yield {
                    "network": network.name,
                    "pixels": TOY_SIZE if quick else pixels,
                    "steps": steps,
                    "width": width,
                    "rounds": many[0]["rounds"],
                    "sequential_s": sequential["wall_s"],
                    "drafted_s": wall["wall_s"],
                    "speed_up": sequential["wall_s"] / wall["wall_s"],
                    "bookkeeping_share": (wall["outside_s"] - sequential["outside_s"]) / sequential["wall_s"],
                }
        seen = profiled(partial(_run, network, TOY_SIZE if quick else pixels, 10, 4), device)
        if seen:
            yield {"network": network.name, "steps": 10, "width": 4, **seen}


def _median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def _run(network: Network, pixels: int, steps: int, width: int) -> dict[str, float]:
    """One picture's wall time, and in a second run, where host and device wait for each other at every call,
    the time outside them.
    """
    import comfy.sample
    import comfy.samplers

    from ..drafting.devices import spread
    from ..drafting.sampler import DraftRefine, Settings

    patcher = spread(network.patcher, "batch", width)
    rounds: list[int] = []
    inner = comfy.samplers.sampler_object("dpmpp_2m")
    drafts = DraftRefine(
        inner, Settings("aggressive", width, 1.0), on_report=lambda report: rounds.append(len(report.rounds))
    )
    sampler = inner if width == 1 else drafts
    sigmas = comfy.samplers.calculate_sigmas(
        network.patcher.get_model_object("model_sampling"), "simple", steps
    )
    latent = network.latent(pixels)

    def wall() -> float:
        wait(device)
        started = time.perf_counter()
        comfy.sample.sample_custom(
            patcher,
            latent,
            1.0,
            sampler,
            sigmas,
            network.positive,
            network.negative,
            torch.zeros_like(latent),
            disable_pbar=True,
            seed=0,
        )
        wait(device)
        return time.perf_counter() - started

    device, starts, inside = patcher.load_device, [0.0], [0.0]

    def enter(*_: Any) -> None:
        wait(device)
        starts[0] = time.perf_counter()

    def leave(*_: Any) -> None:
        wait(device)
        inside[0] += time.perf_counter() - starts[0]

    undisturbed = wall()
    diffusion = patcher.model.diffusion_model
    hooks = diffusion.register_forward_pre_hook(enter), diffusion.register_forward_hook(leave)
    outside = wall() - inside[0]
    for hook in hooks:
        hook.remove()
    return {"wall_s": undisturbed, "outside_s": outside, "rounds": rounds[0] if rounds else steps}


def passes(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Counted on the CPU: the counts are the same on every device."""
    for sampler in ("euler", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"):
        for mode in MODES:
            yield from count((1, 16, 3, 45, 80), sampler, 28, 4, mode)


def traces(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """On the host, whatever the device."""
    for sampler, steps in (("euler", 28), ("dpmpp_2m", 28), ("dpmpp_2m_sde", 50), ("seeds_3", 50)):
        yield {
            "sampler": sampler,
            "steps": steps,
            "trace_s": trace_seconds(sampler, steps, 5 if quick else 20),
        }
