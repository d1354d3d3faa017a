# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine on the embedded teacher by the clock, and what its pictures show."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from ._draft_subjects import PROMPT, ROOT


def _teacher() -> tuple[Any, Any]:
    from ..students.loader import Source, load_unet
    from ..students.pipeline import load_clip

    return load_unet(Source(ROOT / "tiny" / "teacher", "tiny/teacher")), load_clip(ROOT / "tiny", [])


def _encoded(clip: Any, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def wall_clock(steps: int, repeats: int) -> dict[str, Any]:
    """Two CPU devices against one, a thread each, sequential and drafted alternately: medians."""
    import comfy.sample
    import comfy.samplers

    from ..drafting.devices import spread
    from ..drafting.sampler import DraftRefine, Settings

    model, clip = _teacher()
    two = spread(model, "cpu, cpu:1", 0)
    positive, negative = _encoded(clip, PROMPT), _encoded(clip, "")
    inner = comfy.samplers.sampler_object("euler")
    noise = torch.randn(1, 4, 48, 48, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.KSampler(model, steps, model.load_device, "euler", "karras", 1.0).sigmas
    rounds: list[int] = []
    sampler = DraftRefine(
        inner, Settings("aggressive", 2, 1.0), on_report=lambda report: rounds.append(len(report.rounds))
    )
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(repeats + 1):
        for place, patcher, method in (("one", model, inner), ("two", two, sampler)):
            started = time.perf_counter()
            comfy.sample.sample_custom(
                patcher,
                noise,
                4.0,
                method,
                sigmas,
                positive,
                negative,
                torch.zeros_like(noise),
                disable_pbar=True,
                seed=0,
            )
            seconds[place].append(time.perf_counter() - started)
    one, two_s = (statistics.median(values[1:]) for values in seconds.values())
    return {
        "model": "tiny/teacher, 384x384",
        "sampler": "euler",
        "schedule": "karras",
        "steps": steps,
        "mode": "aggressive",
        "drafts": "extrapolated",
        "carry": "F",
        "width": 2,
        "rounds": rounds[-1],
        "wall_s": two_s,
        "sequential_wall_s": one,
        "speed_up": one / two_s,
    }


def overhead(steps: int, repeats: int) -> dict[str, Any]:
    """Time outside the network of a drafted run beyond that of a sequential one, over the sequential run's
    time: median.

    CFG on 24x24 latents, whose call takes 20 ms and more on one core; verified, dpmpp_2m, batches of four
    states.
    """
    import comfy.sample
    import comfy.samplers

    from ..drafting.devices import spread
    from ..drafting.sampler import DraftRefine, Settings

    model, clip = _teacher()
    model = spread(model, "batch", 4)
    positive, negative = _encoded(clip, PROMPT), _encoded(clip, "")
    inner = comfy.samplers.sampler_object("dpmpp_2m")
    noise = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.KSampler(model, steps, model.load_device, "dpmpp_2m", "karras", 1.0).sigmas
    inside: list[float] = []
    network = model.model.diffusion_model
    starts: list[float] = []
    hooks = (
        network.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())),
        network.register_forward_hook(lambda *_: inside.append(time.perf_counter() - starts[-1])),
    )

    def outside(method: Any) -> tuple[float, float]:
        inside.clear()
        started = time.perf_counter()
        comfy.sample.sample_custom(
            model,
            noise,
            4.0,
            method,
            sigmas,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )
        whole = time.perf_counter() - started
        return whole, whole - sum(inside)

    runs = []
    for _ in range(repeats + 1):
        sequential, plain = outside(inner)
        call = sum(inside) / len(inside)
        _, drafted = outside(DraftRefine(inner, Settings("verified", 4, 0.01)))
        runs.append(((drafted - plain) / sequential, call))
    for hook in hooks:
        hook.remove()
    share, call_s = (statistics.median(values) for values in zip(*runs[1:], strict=True))
    return {
        "model": "tiny/teacher, 192x192",
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "steps": steps,
        "mode": "verified",
        "drafts": "extrapolated",
        "carry": "F",
        "width": 4,
        "call_s": call_s,
        "overhead_share": share,
    }


def prompt_accuracy(name: str, count: int, steps: int, width: int, tolerance: float) -> list[dict[str, Any]]:
    """Share of captions (percent) that sequential and drafted pictures show, judged by the reader; the same
    noise for both.

    ``name``: "tiny/teacher", with CFG 4, or "tiny", the student at g = 4.
    """
    import comfy.sample
    import comfy.samplers
    import node_helpers

    from ..drafting.devices import spread
    from ..drafting.sampler import DraftRefine, Settings
    from ..students.loader import Source, load_student
    from ..students.pipeline import load_vae
    from ..tiny import evaluate

    torch.set_num_threads(1)
    model, clip = _teacher()
    cfg = 4.0
    if name == "tiny":
        model, cfg = load_student(Source(ROOT / "tiny" / "unet", name)), 1.0
    captions = evaluate.test_captions(11, count, (1, 2))
    model, vae = spread(model, "batch", width), load_vae(ROOT / "tiny")
    inner = comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.KSampler(model, steps, model.load_device, "euler", "karras", 1.0).sigmas
    negative = _encoded(clip, "")
    rounds: list[int] = []

    def latents(method: Any) -> Tensor:
        drawn = []
        for seed, caption in enumerate(captions):
            positive = node_helpers.conditioning_set_values(_encoded(clip, str(caption)), {"guidance": 4.0})
            noise = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(seed))
            drawn.append(
                comfy.sample.sample_custom(
                    model,
                    noise,
                    cfg,
                    method,
                    sigmas,
                    positive,
                    negative,
                    torch.zeros_like(noise),
                    disable_pbar=True,
                    seed=seed,
                )
            )
        return torch.cat(drawn)

    def right(method: Any) -> float:
        return evaluate.accuracy(captions, _pictures(vae, latents(method)))

    drafts = DraftRefine(
        inner,
        Settings("verified", width, tolerance),
        on_report=lambda report: rounds.append(len(report.rounds)),
    )
    sequential, drafted = right(inner), right(drafts)
    return [
        {
            "model": name,
            "sampler": "euler",
            "schedule": "karras",
            "steps": steps,
            "mode": "verified",
            "drafts": "extrapolated",
            "carry": "F",
            "width": width,
            "rounds": statistics.mean(rounds),
            "captions": len(captions),
            "prompt_accuracy": drafted,
            "sequential_prompt_accuracy": sequential,
        }
    ]


def _pictures(vae: Any, latents: Tensor) -> list:
    from PIL import Image

    values = vae.decode(latents).mul(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return [Image.fromarray(value) for value in values]
