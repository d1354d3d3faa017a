# SPDX-License-Identifier: GPL-3.0-or-later
"""Distillation from the shell, for long runs without a browser: ``python3 dev.py distill``."""

from __future__ import annotations

import argparse
import logging
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOLD_EVERY, FIRST_TOLD = 50, 5
"""Updates."""


class Stopped(Exception):
    """Ctrl-C or a plain kill."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="dev.py distill",
        description="Train a guided student of a diffusers pipeline, or of the embedded teacher. Ctrl-C "
        "saves what there is; the same command goes on from there, to the same result.",
    )
    add_files(result.add_argument_group("files"))
    add_training(result.add_argument_group("training"))
    return result


def add_files(group: Any) -> None:
    add = group.add_argument
    add(
        "--pipeline",
        type=Path,
        default=ROOT / "tiny",
        help="a diffusers folder (default: the embedded pipeline)",
    )
    add("--teacher", default=None, help="its UNet's folder (default: teacher where there is one, else unet)")
    add("--prompts", type=Path, required=True, help="a text file, one prompt a line")
    add("--output", type=Path, required=True, help="the student's .safetensors file")
    add(
        "--diffusers",
        type=Path,
        help="a folder for the finished student in diffusers' layout, merged into its teacher",
    )
    add(
        "--export-lora",
        type=float,
        nargs="+",
        default=[],
        metavar="SCALE",
        help="guidance scales at which the finished student is saved as plain LoRAs, beside the output",
    )


def add_training(group: Any) -> None:
    add = group.add_argument
    add(
        "--size",
        type=int,
        nargs=2,
        default=(96, 96),
        metavar=("WIDTH", "HEIGHT"),
        help="of the pictures, pixels",
    )
    add("--updates", type=int, default=2000, help="of stage one (default: %(default)s)")
    add(
        "--scales",
        type=float,
        nargs=2,
        default=(1.0, 8.0),
        metavar=("LOW", "HIGH"),
        help="guidance (default: 1 8)",
    )
    add(
        "--student-steps",
        type=int,
        default=0,
        help="of the last student of stage two; 0: stage one alone (default)",
    )
    add("--first-steps", type=int, default=8, help="of the first student of stage two (default: %(default)s)")
    add("--step-updates", type=int, default=600, help="of each halving (default: %(default)s)")
    add("--batch", type=int, default=4)
    add("--rank", type=int, default=16)
    add("--rate", type=float, default=1e-3, help="learning rate (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--negative", default="", help="the negative prompt of the teacher's guidance")
    add("--no-checkpointing", action="store_true", help="faster, more memory")
    add(
        "--students", type=int, default=1, help="that share the prompts between them by likeness (default: 1)"
    )
    add("--cpu", action="store_true", help="even where there is a GPU")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.students > 1 and (options.diffusers is not None or options.export_lora):
        parser().error("--diffusers and --export-lora are of one student; expected --students 1 with them.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]("dizzydiff", ROOT)
    return distill_with(options)


def distill_with(options: argparse.Namespace) -> int:
    """Run what the command line says. Exit status: 0 done, 1 a mistake that is said, 130 stopped and
    saved.
    """
    import torch

    from dizzydiff.devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=options.cpu or not torch.cuda.is_available())
    from dizzydiff.students.errors import StudentError

    try:
        train(options, observer())
    except Stopped:
        logging.info("stopped; %s holds what there is, and the same command goes on", options.output)
        return 130
    except (StudentError, OSError) as error:
        logging.error("%s", error)
        return 1
    logging.info("%s is done", options.output)
    return 0


def observer() -> Callable[[Any, Any], None]:
    """Tells the loss, and raises Stopped after Ctrl-C or a plain kill."""
    from dizzydiff.students.distill.pace import Pace

    stop: list[int] = []
    pace = Pace()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.append(number)

    def tell(running: Any, progress: Any) -> None:
        told = pace.sentence(running.done, running.total)
        if running.done % TOLD_EVERY == 0 or running.training.finished or len(progress.losses) == FIRST_TOLD:
            recent = progress.losses[-TOLD_EVERY:]
            numbers = told or f"{running.done} of {running.total} updates"
            logging.info("%s, loss %.4g", numbers, sum(recent) / len(recent))
        if stop:
            raise Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    return tell


def train(options: argparse.Namespace, observe: Callable[[Any, Any], None]) -> None:
    from dizzydiff.students.distill.merged import write_folder
    from dizzydiff.students.distill.plain_lora import export
    from dizzydiff.students.distill.run import distill
    from dizzydiff.students.distill.several import distill_several
    from dizzydiff.students.distill.teacher import diffusers_names
    from dizzydiff.students.student_model import student_of

    job, teacher = job_of(options)
    if options.students > 1:
        distill_several(job, options.students, observe)
        return
    result = distill(job, observe)
    if options.diffusers is not None:
        write_folder(options.diffusers, teacher, result.adapter, diffusers_names(job.teacher))
    if options.export_lora:
        student = student_of(job.teacher, result.adapter, options.output.name)
        for path in export(student, options.export_lora, options.output):
            logging.info("%s is saved", path)


def job_of(options: argparse.Namespace) -> tuple[Any, Path]:
    """The job, and the folder of the teacher's UNet."""
    from dizzydiff.students.distill.job import Job
    from dizzydiff.students.distill.plan import Plan
    from dizzydiff.students.loader import Source, load_unet
    from dizzydiff.students.pipeline import load_clip

    folder = options.teacher or ("teacher" if (options.pipeline / "teacher").is_dir() else "unet")
    teacher, name = options.pipeline / folder, f"{options.pipeline.name}/{folder}"
    model, clip = load_unet(Source(teacher, name)), load_clip(options.pipeline, [])
    width, height = options.size
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    job = Job(
        teacher=model,
        teacher_name=name,
        prompts=[line.strip() for line in lines if line.strip()],
        encode=lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text)),
        shape=(model.model.latent_format.latent_channels, height // 8, width // 8),
        plan=Plan(
            updates=options.updates,
            scales=tuple(options.scales),
            batch=options.batch,
            rate=options.rate,
            seed=options.seed,
            rank=options.rank,
            steps=options.student_steps,
            first_steps=options.first_steps,
            step_updates=options.step_updates,
        ),
        path=options.output,
        negative=options.negative,
        checkpointing=not options.no_checkpointing,
    )
    return job, teacher


if __name__ == "__main__":
    sys.exit(main())
