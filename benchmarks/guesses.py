# SPDX-License-Identifier: GPL-3.0-or-later
"""How well the prediction of a model call can be guessed from others of its own trajectory, which bounds what
drafting can save.

Euler, one by one; every call from the fourth to the last but one is guessed from exact predictions around
it: the last one kept, eps extrapolated in sqrt(sigma), F interpolated between both neighbours. Errors are RMS
over that of the data, as the tolerance is. A row is a model, a guess and a third of the run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.alpha import Alpha, alpha_flow, alpha_ve
from ..drafting.predictors import lagrange
from ..drafting.space import Space
from ._draft_subjects import ROOT, Subject, embedded, smooth, subjects

STEPS = (28, 50)
TOLERANCE = 0.01
THIRDS = ("high noise", "middle", "low noise")
SUBJECTS: dict[str, tuple[Callable[[], Subject], Alpha, str]] = {
    "mixture A": (lambda: next(subjects(teacher=False)), alpha_ve, "karras"),
    "picture-like mixture, flow, CFG 3": (functools.partial(smooth, 3.0, of_flow=True), alpha_flow, "simple"),
    "tiny/teacher, CFG 4": (functools.partial(embedded, "tiny/teacher", 4.0), alpha_ve, "karras"),
    "tiny, g 4": (functools.partial(embedded, "tiny", 1.0), alpha_ve, "karras"),
    "tiny/flow/student, g 4": (functools.partial(embedded, "tiny/flow/student", 1.0), alpha_flow, "simple"),
    "tiny/flow, CFG 2": (functools.partial(embedded, "tiny/flow", 2.0), alpha_flow, "simple"),
}
"""Each with the space of its states and a schedule."""


@dataclass(frozen=True)
class Seen:
    """A model call: x and D [S, ...] at sigma."""

    x: Tensor
    D: Tensor
    sigma: float


Guess = Callable[[Space, Sequence[Seen], int], Tensor]
"""D of the n-th call, from others."""


def kept(space: Space, calls: Sequence[Seen], n: int) -> Tensor:
    return calls[n - 1].D


def extrapolated(space: Space, calls: Sequence[Seen], n: int, order: int = 1) -> Tensor:
    nodes = calls[n - 1 - order : n]
    weights = lagrange([math.sqrt(each.sigma) for each in nodes], math.sqrt(calls[n].sigma))
    eps = [space.eps_of(each.x, each.D, each.sigma) for each in nodes]
    return space.D_of_eps(calls[n].x, _sum(weights, eps), calls[n].sigma)


def interpolated(space: Space, calls: Sequence[Seen], n: int) -> Tensor:
    nodes = [calls[n - 2], calls[n - 1], calls[n + 1]]
    weights = lagrange([math.sqrt(each.sigma) for each in nodes], math.sqrt(calls[n].sigma))
    F = [space.F_of(each.x, each.D, each.sigma) for each in nodes]
    return space.D_of_F(calls[n].x, _sum(weights, F), calls[n].sigma)


def _sum(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * vector for weight, vector in zip(weights, vectors, strict=True)]).sum(0)


GUESSES: dict[str, Guess] = {
    "kept (frozen)": kept,
    "extrapolated, order 1": extrapolated,
    "extrapolated, order 2": functools.partial(extrapolated, order=2),
    "interpolated, both neighbours known": interpolated,
}


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; ``quick``: 28 steps, 4 seeds."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    torch.set_num_threads(1)
    seeds = list(range(4 if quick else 32))
    rows = []
    with torch.inference_mode():
        for name, (make, alpha, schedule) in SUBJECTS.items():
            subject = make()
            for steps in STEPS[: 1 if quick else None]:
                setting = {"model": name, "schedule": schedule, "steps": steps}
                rows += [setting | row for row in guessed(watched(subject, steps, schedule, seeds), alpha)]
    return rows


def watched(subject: Subject, steps: int, schedule: str, seeds: list[int]) -> list[Seen]:
    import comfy.samplers

    euler, sigmas = comfy.samplers.sampler_object("euler"), subject.sigmas("euler", steps, schedule)
    calls: list[Seen] = []

    class Watched:
        def sample(self, *given: Any) -> Tensor:
            def report(step: int, D: Tensor, x: Tensor, total: int) -> None:
                calls.append(Seen(x.clone(), D.clone(), float(sigmas[step])))

            guider, levels, extra, _, *rest = given
            return euler.sample(guider, levels, extra, report, *rest)

    subject.sample(Watched(), sigmas, seeds)
    return calls


def guessed(calls: Sequence[Seen], alpha: Alpha) -> Iterator[dict[str, Any]]:
    data = float(calls[-1].D.square().mean().sqrt())
    space, places = Space(alpha, data), range(3, len(calls) - 1)
    for name, guess in GUESSES.items():
        errors = [_rms(guess(space, calls, n) - calls[n].D) / data for n in places]
        for third, part in enumerate(THIRDS):
            some = errors[third * len(errors) // 3 : (third + 1) * len(errors) // 3]
            every = torch.cat(some)
            yield {
                "guess": name,
                "part": part,
                "error_median": float(every.median()),
                "within_tolerance": float((every < TOLERANCE).double().mean()),
            }


def _rms(x: Tensor) -> Tensor:
    """[S]."""
    return x.flatten(1).square().mean(1).sqrt()


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a model and guess; of each third the median error and the share within tolerance."""
    found: dict[tuple[str, int, str], dict[str, str]] = {}
    for row in rows:
        cell = f"{row['error_median']:.1e}, {row['within_tolerance']:.0%}"
        found.setdefault((row["model"], row["steps"], row["guess"]), {})[row["part"]] = cell
    lines = [f"| model | steps | guess | {' | '.join(THIRDS)} |", "|---|---|---|---|---|---|"]
    for (model, steps, guess), cells in found.items():
        lines.append(f"| {model} | {steps} | {guess} | {' | '.join(cells[part] for part in THIRDS)} |")
    return "\n".join([*lines, ""])
