# SPDX-License-Identifier: GPL-3.0-or-later
"""In a process of its own: prints the peak of memory, in bytes, of sampling or distilling. _peak_of.py WHAT
TEACHER SIZE BATCH
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
TWICE = 2
"""Calls or updates: the second finds the caches and the optimiser's state in place."""


def main(what: str, teacher: str, size: str, batch: str) -> None:
    runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]("dizzydiff", ROOT)
    from dizzydiff.devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=not torch.cuda.is_available())
    from dizzydiff.students.loader import Source, load_unet

    before = begin()
    model = load_unet(Source(Path(teacher), "teacher"))
    if what == "sampling":
        sample(model, int(size), int(batch))
    else:
        guided = four_passes(model) if what == "distilling by a guider" else None
        distill(model, int(size), int(batch), what != "distilling, nothing recomputed", guided)
    print(peak() - before)


def begin() -> int:
    """Bytes held now; peaks count from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _of_process("VmRSS")


def peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _of_process("VmHWM")


def _of_process(line: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(each.split()[1]) * 1024 for each in lines if each.startswith(line))


def conditioning(model: Any, seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(1, 77, model.model.model_config.unet_config["context_dim"], generator=generator), {}]
    ]


def sample(model: Any, size: int, batch: int) -> None:
    """Euler steps with CFG."""
    import comfy.sample
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", TWICE)
    noise = torch.randn(batch, 4, size, size)
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model,
            noise,
            4.0,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            conditioning(model, 0),
            conditioning(model, 1),
            torch.zeros_like(noise),
            disable_pbar=True,
        )


def four_passes(model: Any) -> Any:
    """Dual CFG, and the pass of PAG."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    from dizzydiff.students.distill.guider import TeacherGuider

    perturbed = PerturbedAttentionGuidance.execute(model, 2.0).args[0]
    prompts = (conditioning(model, seed) for seed in range(3))
    return TeacherGuider(DualCFGGuider.execute(perturbed, *prompts, 2.0, 3.0, "regular").args[0], ("cfg1",))


def distill(model: Any, size: int, batch: int, checkpointing: bool, guided: Any) -> None:
    """Updates of stage one by the training's own loop, on a pool as short as one can be."""
    from dizzydiff.students.distill.guider_visits import GuiderVisits
    from dizzydiff.students.distill.plan import Plan, PlannedStage
    from dizzydiff.students.distill.stages import GuidanceStage, GuiderStage, Stage
    from dizzydiff.students.distill.teacher import trainable
    from dizzydiff.students.distill.trainable import AdapterShape, Prompts, TrainableStudent
    from dizzydiff.students.distill.training import Training
    from dizzydiff.students.guidance import distilled_guidance

    plan = Plan(updates=TWICE, batch=batch)
    student = TrainableStudent(
        trainable(model),
        Prompts([conditioning(model, 0)], conditioning(model, 1)),
        (4, size, size),
        AdapterShape(distilled_guidance(plan.scales), plan.rank, plan.seed),
    )
    distribution = student.distribution(plan.scales)
    stage: Stage = GuidanceStage(distribution, steps=2)
    if guided is not None:
        stage = GuiderStage(distribution, GuiderVisits(guided, student, [conditioning(model, 0)], 0), steps=2)
    with torch.enable_grad(), student.training(checkpointing):
        Training(student, [PlannedStage(stage, TWICE)], plan).run()


main(*sys.argv[1:])
