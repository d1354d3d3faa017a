# SPDX-License-Identifier: GPL-3.0-or-later
"""Students of a guider on the embedded teacher: how far the student's one pass is from what the guider
answers with several, beside the untrained network and the student of plain CFG, which is first held to CFG
itself. A short training, so that the students tell what is learned by then, not what can be.

The error is that of D along the guider's own trajectories, RMS, a mean over ten noise levels, for prompts and
scales that no student was trained on. What the untrained network lacks is the guider's whole effect.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .distill import QUICK, ROOT, SEED, Subject

STEPS = 10
SCALES = ((2.3, 1.6), (5.7, 3.4))
"""Of evaluation: the first dial, and the second where there is one."""
PAG_SCALE, RESCALE = 2.0, 0.7
SHORT = replace(QUICK, updates=600, batch=8, captions=16, prompts=200)
SHORTEST = replace(SHORT, updates=6, batch=2)


@dataclass(frozen=True)
class Case:
    """passes: rows that the guider asks for a state."""

    name: str
    make: Callable[[Subject, Any], Any]
    dials: tuple[str, ...]
    passes: int


def cfg(subject: Subject, positive: list) -> Any:
    """CFG Guider."""
    from comfy_extras.nodes_custom_sampler import CFGGuider

    return CFGGuider.execute(subject.teacher, positive, subject.encode(""), 1.0).args[0]


def rescaled_and_perturbed(subject: Subject, positive: list) -> Any:
    """CFG Guider on the model with Rescale CFG and PAG."""
    from comfy_extras.nodes_custom_sampler import CFGGuider
    from comfy_extras.nodes_model_advanced import RescaleCFG
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    (model,) = RescaleCFG().patch(subject.teacher, RESCALE)
    model = PerturbedAttentionGuidance.execute(model, PAG_SCALE).args[0]
    return CFGGuider.execute(model, positive, subject.encode(""), 1.0).args[0]


def dual(subject: Subject, positive: list) -> Any:
    """Dual CFG Guider: the prompt against what it has in common with others, and that against nothing."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    middle, negative = subject.encode("a red circle"), subject.encode("")
    return DualCFGGuider.execute(subject.teacher, positive, middle, negative, 1.0, 1.0, "regular").args[0]


PLAIN = Case("CFG", cfg, ("cfg",), 2)
CASES = (
    Case("Rescale CFG and PAG", rescaled_and_perturbed, ("cfg",), 3),
    Case("Dual CFG", dual, ("cfg1", "cfg2"), 3),
)


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a case and scale."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    subject = Subject(SHORTEST if quick else SHORT)
    judged = set(map(str, subject.captions))
    subject.prompts = [prompt for prompt in subject.prompts if prompt not in judged]
    plain = trained(subject, None)
    rows = rows_of(PLAIN, subject, plain, plain)
    for case in CASES:
        rows += rows_of(case, subject, plain, trained(subject, case))
    return rows


def trained(subject: Subject, case: Case | None) -> Any:
    """The student MODEL of a case's guider; without one, of CFG."""
    from ..students.distill.guider import TeacherGuider
    from ..students.distill.run import distill
    from ..students.student_model import student_of

    guider = None if case is None else TeacherGuider(case.make(subject, subject.encode("")), case.dials)
    with tempfile.TemporaryDirectory() as folder:
        job = subject.job(Path(folder) / "student.safetensors", updates=subject.effort.updates)
        result = distill(replace(job, guider=guider))
    return student_of(subject.teacher, result.adapter, "student")


def rows_of(case: Case, subject: Subject, plain: Any, own: Any) -> list[dict[str, Any]]:
    """own: the student of the case's guider; plain: that of CFG."""
    rows = []
    for scales in SCALES:
        named = dict(zip(case.dials, scales, strict=False))
        guider = case.make(subject, [[subject.context, {}]])
        vars(guider).update(named)
        states = trajectory(guider, subject.noise)
        guidance = dict(zip(("guidance", "guidance_2"), named.values(), strict=False))
        untrained = error(subject.teacher, subject, states, {})
        student = error(own, subject, states, guidance)
        rows.append(
            {
                "guider": case.name,
                "passes": case.passes,
                **{f"scale {i + 1}": scale for i, scale in enumerate(named.values())},
                "updates": subject.effort.updates,
                "batch": subject.effort.batch,
                "untrained": untrained,
                "plain": error(plain, subject, states, {"guidance": scales[0]}),
                "student": student,
                "learned": 1 - student / untrained,
            }
        )
    return rows


State = tuple[Tensor, Tensor, Tensor]
"""x, sigma and D."""


def trajectory(guider: Any, noise: Tensor) -> list[State]:
    """Of Euler steps over core's simple sigmas, through the guider's own sampling."""
    import comfy.samplers

    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    states: list[State] = []

    def walk(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **others: Any) -> Tensor:
        for sigma, below in itertools.pairwise(sigmas):
            denoised = model(x, sigma.expand(len(x)), **extra_args)
            states.append((x, sigma, denoised))
            x = denoised + below / sigma * (x - denoised)
        return x

    sampler = comfy.samplers.KSAMPLER(walk)
    guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=SEED)
    return states


def error(model: Any, subject: Subject, states: list[State], options: dict[str, float]) -> float:
    """Mean over the states of RMS(D_model - D) / RMS(D), at CFG 1."""
    import comfy.sample
    import comfy.samplers

    errors: list[float] = []

    def compare(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **others: Any) -> Tensor:
        for state, sigma, target in states:
            difference = model(state, sigma.expand(len(state)), **extra_args) - target
            errors.append(float((difference.square().mean() / target.square().mean()).sqrt()))
        return x

    comfy.sample.sample_custom(
        model,
        subject.noise,
        1.0,
        comfy.samplers.KSAMPLER(compare),
        torch.tensor([float(states[0][1]), 0.0]),
        [[subject.context, options]],
        subject.encode(""),
        torch.zeros_like(subject.noise),
        disable_pbar=True,
        seed=SEED,
    )
    return sum(errors) / len(errors)


def table(rows: list[dict[str, Any]]) -> str:
    """Errors of D, percent, and what share of the untrained network's is gone, in Markdown."""
    lines = [
        "| guider | scales | before training | student of plain CFG | student of the guider | learned |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        scales = ", ".join(f"{value:g}" for key, value in row.items() if key.startswith("scale"))
        errors = " | ".join(f"{100 * row[key]:.1f} %" for key in ("untrained", "plain", "student"))
        lines.append(f"| {row['guider']} | {scales} | {errors} | {100 * row['learned']:.0f} % |")
    return "\n".join(lines) + "\n"
