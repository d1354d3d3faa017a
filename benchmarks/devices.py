# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices of unequal speed: the time of a picture beside that of the fastest device alone.

By simulated clock: real pictures on CPU devices of which each call takes the time that its device is given.
"times_as_fast" is against every step on the fastest device alone, "bound" the sum of speeds; of one device
calls are skipped. One row by the wall clock, of two CPU devices of which one waits after each call for as
long as that took. And threads beside processes, where launching is all the work: calls a second.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _launches
from ._draft_subjects import PROMPT, ROOT, pipeline_of
from ._parallel_peers import relative_rms
from ._slowed import SimulatedClock, at_each_call, lasting, names, simulated_s

SPEEDS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 1),
    (1, 0.5),
    (1, 0.33),
    (1, 0.7, 0.3),
    (1, 1, 0.5, 0.25),
    (1,) * 8,
)
STEPS, TOLERANCE = 28, 0.01


class Pictures:
    """Of an embedded model: latents [1, C, size, size] from a seed, by euler."""

    def __init__(self, name: str, schedule: str, size: int = 12) -> None:
        import comfy.samplers
        import node_helpers

        self.name, self.schedule = name, schedule
        self.model, clip, vae = pipeline_of(name)
        self.cfg = 4.0 if name.endswith("teacher") else 1.0
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
        self._prompts = node_helpers.conditioning_set_values(positive, {"guidance": 4.0}), negative
        self._shape = (1, vae.latent_channels, size, size)
        self._sigmas = comfy.samplers.KSampler(
            self.model, STEPS, self.model.load_device, "euler", schedule, 1.0
        ).sigmas
        self.euler = comfy.samplers.sampler_object("euler")

    def draw(self, model: Any, sampler: Any, seed: int) -> Tensor:
        import comfy.sample

        noise = torch.randn(self._shape, generator=torch.Generator().manual_seed(seed))
        given = (model, noise, self.cfg, sampler, self._sigmas, *self._prompts, torch.zeros_like(noise))
        return comfy.sample.sample_custom(*given, disable_pbar=True, seed=seed)

    def drafted(
        self, model: Any, seed: int, clock: Callable[[], float] = time.perf_counter
    ) -> tuple[Tensor, Any]:
        """The latent and the report."""
        from ..drafting.sampler import DraftRefine, Settings

        reports: list[Any] = []
        settings = Settings("verified", 0, TOLERANCE)
        sampler = DraftRefine(self.euler, settings, on_report=reports.append, clock=clock)
        return self.draw(model, sampler, seed), reports[0]


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: the teacher on Karras' sigmas, 2 seeds."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    seeds = range(2 if quick else 4)
    launches = _launches.rows((2, 4, 8), 100 if quick else 500, 2 if quick else 5)
    with torch.inference_mode():
        rows = [wall_clock(24 if quick else 48, 1 if quick else 3)]
        for schedule in ("karras",) if quick else ("karras", "simple"):
            rows += simulated(Pictures("tiny/teacher", schedule), seeds)
    return rows + launches


def simulated(pictures: Pictures, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each set of speeds."""
    from ..drafting.devices import spread

    plain = torch.cat([pictures.draw(pictures.model, pictures.euler, seed) for seed in seeds])
    for speeds in SPEEDS:
        places, clock = names(len(speeds)), SimulatedClock()
        model = spread(pictures.model, ", ".join(places), 0)
        with at_each_call(model, [lasting(clock, 1 / speed) for speed in speeds]):
            drawn, reports = zip(*(pictures.drafted(model, seed, clock) for seed in seeds), strict=True)
        seconds = {"": 1.0} | {place: 1 / speed for place, speed in zip(places, speeds, strict=True)}
        gains = [STEPS / simulated_s(report, seconds) for report in reports]
        calls = [call for report in reports for calls in report.rounds for call in calls]
        deviations = relative_rms(torch.cat(drawn), plain)
        yield {
            "model": pictures.name,
            "schedule": pictures.schedule,
            "speeds": ", ".join(f"{speed:g}" for speed in speeds),
            "times_as_fast": len(gains) / sum(1 / gain for gain in gains),
            "least": min(gains),
            "bound": sum(speeds),
            "rounds": statistics.mean(len(report.rounds) for report in reports),
            "used": ", ".join(sorted({call.device for call in calls if call.device})) or "cpu",
            "far_drafts": sum(call.rounds > 1 for call in calls) / len(seeds),
            "far_used": sum(call.rounds > 1 and call.accepted is True for call in calls) / len(seeds),
            "skipped": statistics.mean(report.interpolations for report in reports),
            "deviation_median": statistics.median(deviations),
            "deviation_largest": max(deviations),
        }


def wall_clock(size: int, repeats: int) -> dict[str, Any]:
    """Every step on one CPU device, calls skipped there, and with a second one that takes twice as long, in
    turn: medians.
    """
    from ..drafting.devices import spread

    pictures = Pictures("tiny/teacher", "karras", size)
    one, two = spread(pictures.model, "cpu", 0, lambda _: None), spread(pictures.model, "cpu, cpu:1", 0)
    seconds: dict[str, list[float]] = {"plain": [], "skipping": [], "two": []}
    with at_each_call(two, [lambda call: call(), twice_as_long]):
        for _, (kind, model) in itertools.product(
            range(repeats + 1), (("plain", pictures.model), ("skipping", one), ("two", two))
        ):
            started = time.perf_counter()
            if kind == "plain":
                pictures.draw(model, pictures.euler, 0)
            else:
                _, report = pictures.drafted(model, 0)
            seconds[kind].append(time.perf_counter() - started)
    plain, skipping, both = (statistics.median(values[1:]) for values in seconds.values())
    return {
        "model": f"tiny/teacher, {8 * size}x{8 * size}, wall clock",
        "schedule": "karras",
        "speeds": "1, 0.5",
        "times_as_fast": plain / both,
        "skipping_times_as_fast": plain / skipping,
        "estimated": report.times_as_fast,
        "measured_speeds": ", ".join(f"{speed:.2g}" for speed in report.speeds.values()),
        "rounds": len(report.rounds),
        "bound": 1.5,
        "wall_s": both,
        "plain_wall_s": plain,
    }


def twice_as_long(call: Callable[[], Tensor]) -> Tensor:
    """A device of half the speed, whose waiting leaves the cores to the others."""
    started = time.perf_counter()
    result = call()
    time.sleep(time.perf_counter() - started)
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """All rows in Markdown, in two tables."""
    lines = [
        "| model | schedule | speeds | times as fast as the fastest alone (least) | bound | rounds | used | "
        "far drafts, used | skipped | deviation: median, largest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if "speeds" in row):
        least = f" ({row['least']:.2f})" if "least" in row else ""
        cells = [row["model"], row["schedule"], row["speeds"], f"**{row['times_as_fast']:.2f}**{least}"]
        cells += [f"{row['bound']:.3g}", f"{row['rounds']:.1f}", row.get("used", "")]
        if "far_drafts" in row:
            cells += [f"{row['far_drafts']:.1f}, {row['far_used']:.1f}", f"{row['skipped']:.1f}"]
            cells.append(f"{row['deviation_median']:.1e}, {row['deviation_largest']:.1e}")
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Calls a second of a network that is mostly launches, over those of one thread alone:",
        "",
        "| workers | threads | processes |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['workers']} | {row['threads']:.2f} | {row['processes']:.2f} |"
        for row in rows
        if "launches" in row
    ]
    return "\n".join(lines) + "\n"
