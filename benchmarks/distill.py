# SPDX-License-Identifier: GPL-3.0-or-later
"""Students distilled from the embedded teacher: prediction error and prompt accuracy over g (stage one),
accuracy over steps and g (stage two), how much pictures of one caption differ, the cost of a picture, and the
speed of training beside a plain diffusers LoRA loop. Accuracy is the reader's, percent."""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tiny"
SCALES = (1, 2, 4, 8)
SEED = 51
DIVERSE_CAPTIONS = ("a red circle on white", "a blue square on gray", "a green triangle on white")
"""They leave place and size open."""
DIVERSE_SCALE = 4


@dataclass(frozen=True)
class Effort:
    """How much is trained and judged."""

    updates: int
    step_updates: int
    batch: int
    steps: int
    captions: int
    prompts: int
    loop_updates: int
    seeds: int


QUICK = Effort(
    updates=60, step_updates=12, batch=8, steps=2, captions=16, prompts=100, loop_updates=4, seeds=8
)
FULL = Effort(
    updates=2000, step_updates=400, batch=32, steps=1, captions=300, prompts=2000, loop_updates=40, seeds=64
)


class Subject:
    """The embedded teacher, its captions and its reader."""

    def __init__(self, effort: Effort) -> None:
        from ..students.pipeline import load_vae
        from ..tiny import student
        from ..tiny.evaluate import test_captions

        self.effort, self.embedded, self.vae = effort, student.embedded(TINY), load_vae(TINY)
        self.teacher, self.encode = self.embedded.teacher, self.embedded.encode
        self.prompts = student.captions(effort.prompts)
        self.captions = test_captions(SEED + 1, effort.captions, (1, 2))
        self.noise = torch.randn(
            effort.captions, *student.LATENT, generator=torch.Generator().manual_seed(SEED)
        )
        self.context = torch.cat([self.encode(str(caption))[0][0] for caption in self.captions])

    def job(self, file: Path, **changes: Any) -> Any:
        """The recipe of the embedded student, with changes to its plan."""
        from ..tiny.student import PLAN

        return self.embedded.job(file, self.prompts, replace(PLAN, batch=self.effort.batch, **changes))

    def sampled(self, model: Any, g: float, cfg: float, steps: int, rows: slice = slice(None)) -> Tensor:
        """Latents of the captions by euler and core's simple sigmas."""
        return self.walked(model, g, cfg, self.levels(steps), self.noise[rows], self.context[rows])

    def levels(self, steps: int) -> Tensor:
        """Core's simple sigmas."""
        import comfy.samplers

        return comfy.samplers.calculate_sigmas(
            self.teacher.get_model_object("model_sampling"), "simple", steps
        )

    def seeds(self, model: Any, g: float, cfg: float, steps: int, caption: str) -> list[Image.Image]:
        """Pictures of one caption, each from a noise of its own."""
        generator = torch.Generator().manual_seed(SEED + 2)
        noise = torch.randn(self.effort.seeds, *self.noise.shape[1:], generator=generator)
        context = self.encode(caption)[0][0].expand(len(noise), -1, -1)
        return self.pictures(self.walked(model, g, cfg, self.levels(steps), noise, context))

    def walked(
        self,
        model: Any,
        g: float,
        cfg: float,
        sigmas: Tensor,
        noise: Tensor,
        context: Tensor,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Euler steps over ``sigmas``, from ``latents`` with noise."""
        import comfy.sample
        import comfy.samplers

        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            [[context, {"guidance": g}]],
            self.encode(""),
            torch.zeros_like(noise) if latents is None else latents,
            disable_pbar=True,
            seed=SEED,
        )

    def pictures(self, latents: Tensor) -> list[Image.Image]:
        pixels = self.vae.decode(latents).mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        return [Image.fromarray(picture.numpy()) for picture in pixels]

    def accuracy(self, latents: Tensor) -> float:
        from ..tiny import reader

        return 100 * reader.accuracy(self.captions, self.pictures(latents))


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of kinds "stage one" (one a g), "stage two" (one a number of steps and g), "diversity" (one a
    number of steps), "picture" and "training".
    """
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    effort = QUICK if quick else FULL
    subject = Subject(effort)
    students = trained(subject)
    return [
        *stage_one(subject, students[0]),
        *stage_two(subject, students),
        *diversity(subject, students),
        cost_of_a_picture(subject, students[0]),
        training_speed(subject),
    ]


def trained(subject: Subject) -> list[Any]:
    """The student MODEL at the end of every stage; the first is what the recipe of tiny/ makes."""
    from ..students.distill.run import Running, distill
    from ..students.distill.training import Progress
    from ..students.student_model import student_of

    adapters: list[Any] = []

    def keep(running: Running, progress: Progress) -> None:
        if progress.update == running.training.stages[progress.stage].updates:
            adapters.append(running.adapter())

    effort = subject.effort
    with tempfile.TemporaryDirectory() as folder:
        distill(
            subject.job(
                Path(folder) / "student.safetensors",
                updates=effort.updates,
                steps=effort.steps,
                step_updates=effort.step_updates,
            ),
            keep,
        )
    return [student_of(subject.teacher, each, "student") for each in adapters]


def stage_one(subject: Subject, student: Any) -> list[dict[str, Any]]:
    """Relative error of D along the teacher's 50-step trajectories, and accuracy. 0 % error at g = 1 would be
    the teacher itself.
    """
    rows = []
    for g in SCALES:
        guided = subject.sampled(subject.teacher, g, g, 50)
        rows.append(
            {
                "kind": "stage one",
                "g": g,
                "steps": 50,
                "relative_error": prediction_error(subject, student, g),
                "untrained_error": prediction_error(subject, subject.teacher, g),
                "teacher": subject.accuracy(guided),
                "student": subject.accuracy(subject.sampled(student, g, 1.0, 50)),
            }
        )
    return rows


def prediction_error(subject: Subject, student: Any, g: float) -> float:
    """RMS(D_student - D_teacher) / RMS(D_teacher), mean over ten noise levels of the teacher's trajectory, at
    most 32 rows.
    """
    import comfy.sample
    import comfy.samplers

    rows = slice(0, 32)
    noise, context, empty = subject.noise[rows], subject.context[rows], subject.encode("")
    sigmas = comfy.samplers.calculate_sigmas(subject.teacher.get_model_object("model_sampling"), "simple", 50)
    visited: list[tuple[Tensor, Tensor, Tensor]] = []

    def sample(model: Any, cfg: float, function: Any, sigmas: Tensor, options: dict) -> Tensor:
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            comfy.samplers.KSAMPLER(function),
            sigmas,
            [[context, options]],
            empty,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=SEED,
        )

    def walk(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool) -> Tensor:
        for i, (sigma, below) in enumerate(itertools.pairwise(sigmas)):
            denoised = model(x, sigma.expand(len(x)), **extra_args)
            if i % 5 == 0:
                visited.append((x, sigma, denoised))
            x = denoised + below / sigma * (x - denoised)
        return x

    errors: list[float] = []

    def compare(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool
    ) -> Tensor:
        for state, sigma, target in visited:
            difference = model(state, sigma.expand(len(state)), **extra_args) - target
            errors.append((difference.square().mean() / target.square().mean()).sqrt().item())
        return x

    sample(subject.teacher, g, walk, sigmas, {})
    sample(student, 1.0, compare, sigmas[:2], {"guidance": g})
    return sum(errors) / len(errors)


def stage_two(subject: Subject, students: list[Any]) -> list[dict[str, Any]]:
    """As the paper's table: accuracy over steps and g, beside the teacher with as many steps."""
    rows = []
    for i, student in enumerate(students[1:]):
        steps = 8 >> i
        for g in SCALES:
            rows.append(
                {
                    "kind": "stage two",
                    "g": g,
                    "steps": steps,
                    "teacher": subject.accuracy(subject.sampled(subject.teacher, g, g, steps)),
                    "student": subject.accuracy(subject.sampled(student, g, 1.0, steps)),
                }
            )
    return rows


def diversity(subject: Subject, students: list[Any]) -> list[dict[str, Any]]:
    """How far place and size of the one thing in a caption differ over seeds, pixels, a mean over captions.

    Pictures that show more or less than one thing are left out: what is scattered over a broken picture is no
    diversity.
    """
    from ..tiny import reader

    def row(who: str, model: Any, cfg: float, steps: int) -> dict[str, Any]:
        drawn = [subject.seeds(model, DIVERSE_SCALE, cfg, steps, caption) for caption in DIVERSE_CAPTIONS]
        whole = [[each for each in those if len(reader.read(each).shapes) == 1] for those in drawn]
        return {
            "kind": "diversity",
            "who": who,
            "g": DIVERSE_SCALE,
            "steps": steps,
            "place_px": sum(map(reader.spread, whole)) / len(whole),
            "size_px": sum(map(reader.size_spread, whole)) / len(whole),
            "pictures": sum(map(len, whole)),
        }

    return [
        row("teacher", subject.teacher, DIVERSE_SCALE, 50),
        row("student", students[0], 1.0, 50),
        *(row("student", student, 1.0, 8 >> i) for i, student in enumerate(students[1:])),
    ]


def cost_of_a_picture(subject: Subject, student: Any) -> dict[str, Any]:
    """Seconds of four pictures: 4 steps with one pass, and the teacher's 50 with two; the second run of
    each.
    """

    def seconds(model: Any, cfg: float, steps: int) -> float:
        for _ in range(2):
            started = time.perf_counter()
            subject.sampled(model, 4.0, cfg, steps, slice(0, 4))
        return time.perf_counter() - started

    teacher, fast = seconds(subject.teacher, 4.0, 50), seconds(student, 1.0, 4)
    return {"kind": "picture", "teacher_s": teacher, "student_s": fast, "share": fast / teacher}


def training_speed(subject: Subject) -> dict[str, Any]:
    """Mean seconds of an update, the making of states included, beside a hand-written loop on diffusers'
    UNet, one after the other.

    The loop does the least that stage one can: two passes of the teacher, one of the student, LoRA on every
    linear layer and convolution, AdamW, and random states that cost nothing.
    """
    engine, loop = engine_seconds(subject), plain_seconds(subject.effort)
    return {
        "kind": "training",
        "batch": subject.effort.batch,
        "update_s": engine,
        "diffusers_loop_s": loop,
        "speed": loop / engine,
    }


def engine_seconds(subject: Subject) -> float:
    """Over the updates that one pool of states serves, after those of the first."""
    from ..students.distill.run import Running, distill
    from ..students.distill.stages import GuidanceStage
    from ..students.distill.training import USES_OF_A_STATE, Progress

    served = USES_OF_A_STATE * GuidanceStage.steps
    times: list[float] = []

    def clock(running: Running, progress: Progress) -> None:
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        distill(subject.job(Path(folder) / "student.safetensors", updates=2 * served), clock)
    return (times[-1] - times[served - 1]) / served


def plain_seconds(effort: Effort) -> float:
    """Of an update of the hand-written loop."""
    from diffusers import UNet2DConditionModel

    from ..tiny.student import LATENT

    teacher, student = (
        UNet2DConditionModel.from_pretrained(TINY / part, torch_dtype=torch.float32).requires_grad_(False)
        for part in ("teacher", "unet")
    )
    parameters = plain_lora(student, 16)
    optimiser = torch.optim.AdamW(parameters, 1e-3)
    times = []
    for _ in range(effort.loop_updates + 1):
        started = time.perf_counter()
        x, t = torch.randn(effort.batch, *LATENT), torch.randint(1000, (effort.batch,))
        context = torch.randn(effort.batch, 77, 64)
        with torch.no_grad():
            both = teacher(
                torch.cat([x, x]),
                torch.cat([t, t]),
                torch.cat([context, torch.zeros_like(context)]),
                return_dict=False,
            )[0]
            conditional, unconditional = both.chunk(2)
        answer = student(x, t, context, timestep_cond=torch.randn(effort.batch, 256), return_dict=False)[0]
        (answer - (4 * conditional - 3 * unconditional)).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - started)
    return sum(times[1:]) / effort.loop_updates


def plain_lora(network: torch.nn.Module, rank: int) -> list[torch.nn.Parameter]:
    """LoRA on every linear layer and convolution by forward hooks."""
    parameters: list[torch.nn.Parameter] = []
    for module in list(network.modules()):
        if isinstance(module, torch.nn.Linear):
            pair: tuple[torch.nn.Module, torch.nn.Module] = (
                torch.nn.Linear(module.in_features, rank, bias=False),
                torch.nn.Linear(rank, module.out_features, bias=False),
            )
        elif isinstance(module, torch.nn.Conv2d):
            down: Any = {
                "kernel_size": module.kernel_size,
                "stride": module.stride,
                "padding": module.padding,
                "bias": False,
            }
            pair = (
                torch.nn.Conv2d(module.in_channels, rank, **down),
                torch.nn.Conv2d(rank, module.out_channels, 1, bias=False),
            )
        else:
            continue
        torch.nn.init.zeros_(pair[1].weight)  # type: ignore[arg-type]
        module.register_forward_hook(
            lambda _, inputs, output, pair=pair: output + pair[1](pair[0](inputs[0]))
        )
        parameters += [*pair[0].parameters(), *pair[1].parameters()]
    return parameters


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy, percent, in Markdown."""
    one = [row for row in rows if row["kind"] == "stage one"]
    two = [row for row in rows if row["kind"] == "stage two"]
    lines = [
        "| g | error of D | before training | teacher, 50 steps | student, 50 steps |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['g']} | {100 * r['relative_error']:.1f} % | {100 * r['untrained_error']:.1f} % "
        f"| {r['teacher']:.0f} | {r['student']:.0f} |"
        for r in one
    ]
    lines += [
        "",
        "| steps | " + " | ".join(f"g = {g}" for g in SCALES) + " |",
        "|---" * (1 + len(SCALES)) + "|",
    ]
    for steps in sorted({row["steps"] for row in two}, reverse=True):
        cells = [f"{r['student']:.0f} (teacher {r['teacher']:.0f})" for r in two if r["steps"] == steps]
        lines.append(f"| {steps} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"| g = {DIVERSE_SCALE} | spread of places, pixels | of sizes | pictures with one thing |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['who']}, {r['steps']} steps | {r['place_px']:.1f} | {r['size_px']:.1f} | {r['pictures']} |"
        for r in rows
        if r["kind"] == "diversity"
    ]
    picture, speed = (next(row for row in rows if row["kind"] == kind) for kind in ("picture", "training"))
    lines += [
        "",
        f"A picture of the student in 4 steps costs {picture['share']:.3f} of the teacher's in 50 with CFG; "
        f"an update takes "
        f"{speed['update_s']:.2f} s, and {speed['diffusers_loop_s']:.2f} s in the plain loop (speed "
        f"{speed['speed']:.2f}).",
    ]
    return "\n".join(lines) + "\n"
