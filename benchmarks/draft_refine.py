# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine beside the paper's mode, the same sampler with fewer steps, and parallel samplers of other papers.

A row is one setting: rounds and model calls (means over seeds), and the deviation from the sequential result with as many
steps (RMS distance over RMS). Seeds share a batch where every draft is used; verified runs decide for each seed alone.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._mixture import Mixture
from ._parallel_peers import paradigms, parastep, relative_rms

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a small red circle left of a blue square on white"
SAMPLERS = ("euler", "dpmpp_2m", "heun", "euler_ancestral", "dpmpp_2m_sde", "er_sde")
TOLERANCE = 0.01


@dataclass(frozen=True)
class Subject:
    """A model to sample: ``sample(sampler, sigmas, seeds)`` gives latents [len(seeds), ...] through ComfyUI."""

    name: str
    sigmas: Callable[[str, int, str], Tensor]
    sample: Callable[[Any, Tensor, list[int]], Tensor]


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: one schedule and number of steps, few seeds, no CFG teacher."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    seeds = list(range(8 if quick else 32))
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for subject in subjects(quick):
            network = subject.name.startswith("tiny")
            schedules, steps = (("karras",), (28,)) if quick else (("karras", "simple"), (20, 28, 50))
            few = seeds[: len(seeds) // 4] if network else seeds
            for schedule, count, sampler in itertools.product(schedules, steps, SAMPLERS[:2] if quick else SAMPLERS):
                rows += compare(subject, sampler, schedule, count, few, (2, 4) if quick or network else (2, 4, 8))
        rows += wall_clock(50, 1 if quick else 5)
    return rows


def compare(subject: Subject, name: str, schedule: str, steps: int, seeds: list[int], widths: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The rows of one sampler, schedule and number of steps."""
    import comfy.samplers

    sigmas = subject.sigmas(name, steps, schedule)
    inner = comfy.samplers.sampler_object(name)
    common = {"model": subject.name, "sampler": name, "schedule": schedule, "steps": steps}
    alone, wall = timed(lambda: torch.cat([subject.sample(inner, sigmas, [seed]) for seed in seeds]))
    together = subject.sample(inner, sigmas, seeds)
    calls = 2 * steps - 1 if name == "heun" else steps
    for k in widths:
        for drafts in ("frozen", "extrapolated"):
            rounds, evaluations, result, _ = drafted(subject, inner, "aggressive", k, drafts, sigmas, [seeds])
            yield row(common, "aggressive", drafts, k, rounds, evaluations, relative_rms(result, together))
        rounds, evaluations, result, seconds = drafted(subject, inner, "verified", k, "extrapolated", sigmas, [[seed] for seed in seeds])
        yield row(common, "verified", "extrapolated", k, rounds, evaluations, relative_rms(result, alone)) | {
            "wall_s": seconds / len(seeds), "sequential_wall_s": wall / len(seeds)}
        if "ancestral" not in name and "sde" not in name:
            fewer = round(steps * (1 + (calls - 1) / k) / calls)
            result = subject.sample(inner, subject.sigmas(name, fewer, schedule), seeds)
            yield row(common, "fewer steps", "none", 1, fewer * calls / steps, fewer * calls / steps, relative_rms(result, together))
        if name == "euler":
            yield from peers(subject, common, sigmas, seeds, k, alone)


def peers(subject: Subject, common: dict[str, Any], sigmas: Tensor, seeds: list[int], k: int,
          reference: Tensor) -> Iterator[dict[str, Any]]:
    """ParaDiGMS at three tolerances and ParaStep, as sampler functions."""
    import comfy.samplers

    settings: dict[str, Callable] = {"ParaStep": lambda drift, x: parastep(drift, x, sigmas, k)}
    for tolerance in (1e-1, 1e-2, 1e-3):
        settings[f"ParaDiGMS {tolerance:g}"] = lambda drift, x, tolerance=tolerance: paradigms(drift, x, sigmas, k, tolerance)
    for name, method in settings.items():
        rounds: list[int] = []
        calls: list[float] = []

        def function(model, x, sigmas, extra_args, callback, disable, method=method, rounds=rounds, calls=calls):
            def drift(state: Tensor, sigma: float) -> Tensor:
                calls.append(sigma)
                return (state - model(state, state.new_full([len(state)], sigma), **extra_args)) / sigma

            result, used = method(drift, x)
            rounds.append(used)
            return result

        result = torch.cat([subject.sample(comfy.samplers.KSAMPLER(function), sigmas, [seed]) for seed in seeds])
        yield row(common, name, "none", k, statistics.mean(rounds), len(calls) / len(seeds), relative_rms(result, reference))


def row(common: dict[str, Any], mode: str, drafts: str, k: int, rounds: float, calls: float, deviations: list[float]) -> dict[str, Any]:
    ordered = sorted(deviations)
    return {**common, "mode": mode, "drafts": drafts, "width": k, "rounds": rounds, "model_calls": calls, "seeds": len(ordered),
            "deviation_median": statistics.median(ordered), "deviation_p95": ordered[int(0.95 * (len(ordered) - 1) + 0.5)]}


def drafted(subject: Subject, inner: Any, mode: str, k: int, drafts: str, sigmas: Tensor,
            batches: list[list[int]]) -> tuple[float, float, Tensor, float]:
    """(rounds, evaluations, latents, seconds) of a run a batch of seeds."""
    from ..drafting.replicas import DraftRefine
    from ..drafting.speculation import Report

    reports: list[Report] = []
    sampler = DraftRefine(inner, mode, k, TOLERANCE, drafts == "frozen", reports.append)  # type: ignore[arg-type]
    results, seconds = timed(lambda: torch.cat([subject.sample(sampler, sigmas, seeds) for seeds in batches]))
    return statistics.mean(len(r.rounds) for r in reports), statistics.mean(r.evaluations for r in reports), results, seconds


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


def subjects(quick: bool) -> Iterator[Subject]:
    yield mixture("mixture A", Mixture(0, 6, 0.15, sampling()))
    yield mixture("mixture B", Mixture(1, 3, 0.5, sampling()))
    if not quick:
        yield embedded("tiny/teacher", 4.0)
    yield embedded("tiny", 1.0)


def sampling() -> Any:
    """SD's sigmas, for the mixtures."""
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    return Sampling()


def mixture(name: str, model: Mixture) -> Subject:
    """A mixture inside ComfyUI's own sampler call, with the guider's part played by the mixture."""
    import comfy.samplers

    class Guider:
        def __init__(self) -> None:
            self.inner_model, self.model_patcher = model.inner_model.inner_model, model.inner_model.model_patcher
            self.conds: dict[str, list] = {}
            self.cfg = 1.0

        def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Tensor:
            denoised = model(x, sigma)
            for hook in model_options.get("sampler_post_cfg_function", []):
                denoised = hook({"denoised": denoised, "uncond_denoised": denoised})
            return denoised

    def sigmas(sampler: str, steps: int, schedule: str) -> Tensor:
        return comfy.samplers.calculate_sigmas(model.inner_model.inner_model.model_sampling, schedule, steps)

    def sample(sampler: Any, sigmas: Tensor, seeds: list[int]) -> Tensor:
        noise = torch.stack([torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        extra = {"model_options": {"dizzydiff_devices": {"width": 0, "batch": True}}, "seed": seeds[0]}
        guider = Guider()
        return sampler.sample(guider, sigmas, extra, None, noise, torch.zeros_like(noise), None, True)

    return Subject(name, sigmas, sample)


def embedded(name: str, cfg: float) -> Subject:
    """The embedded student (CFG 1, guidance 4) or its teacher, a row a seed."""
    import comfy.sample
    import comfy.samplers
    import node_helpers

    from ..drafting.replicas import spread
    from ..students.loader import Source, load_student, load_unet
    from ..students.pipeline import load_clip

    tiny = ROOT / "tiny"
    model = load_unet(Source(tiny / "teacher", name)) if name.endswith("teacher") else load_student(Source(tiny / "unet", name))
    model, clip = spread(model, "batch", 0), load_clip(tiny, [])
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
    positive = node_helpers.conditioning_set_values(positive, {"guidance": 4.0})

    def sigmas(sampler: str, steps: int, schedule: str) -> Tensor:
        return comfy.samplers.KSampler(model, steps, model.load_device, sampler, schedule, 1.0).sigmas

    def sample(sampler: Any, sigmas: Tensor, seeds: list[int]) -> Tensor:
        noise = torch.stack([torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, torch.zeros_like(noise),
                                          disable_pbar=True, seed=seeds[0])

    return Subject(name, sigmas, sample)


def wall_clock(steps: int, repeats: int) -> list[dict[str, Any]]:
    """Two CPU devices against one, a thread each, sequential and drafted alternately: medians."""
    import comfy.sample
    import comfy.samplers

    from ..drafting.replicas import DraftRefine, spread
    from ..students.loader import Source, load_unet
    from ..students.pipeline import load_clip

    model, clip = load_unet(Source(ROOT / "tiny" / "teacher", "tiny/teacher")), load_clip(ROOT / "tiny", [])
    two = spread(model, "cpu, cpu:1", 0)
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
    inner = comfy.samplers.sampler_object("euler")
    noise = torch.randn(1, 4, 48, 48, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.KSampler(model, steps, model.load_device, "euler", "karras", 1.0).sigmas
    rounds: list[int] = []
    sampler = DraftRefine(inner, "aggressive", 2, 1.0, on_report=lambda report: rounds.append(len(report.rounds)))
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(repeats + 1):
        for place, patcher, method in (("one", model, inner), ("two", two, sampler)):
            started = time.perf_counter()
            comfy.sample.sample_custom(patcher, noise, 4.0, method, sigmas, positive, negative, torch.zeros_like(noise),
                                       disable_pbar=True, seed=0)
            seconds[place].append(time.perf_counter() - started)
    one, two_s = (statistics.median(values[1:]) for values in seconds.values())
    return [{"model": "tiny/teacher, 384x384", "sampler": "euler", "schedule": "karras", "steps": steps, "mode": "aggressive",
             "drafts": "extrapolated", "width": 2, "rounds": rounds[-1], "wall_s": two_s, "sequential_wall_s": one,
             "speed_up": one / two_s}]
