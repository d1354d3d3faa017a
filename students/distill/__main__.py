# SPDX-License-Identifier: GPL-3.0-or-later
"""Distillation from the shell, for long runs without a browser: ``python3 dev.py distill``."""

from __future__ import annotations

import argparse
import logging
import runpy
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOLD_EVERY = 50


class Stopped(Exception):
    """Ctrl-C or a plain kill."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="dev.py distill",
        description="Train a guided student of a diffusers pipeline, or of the embedded teacher. Ctrl-C "
        "saves what "
        "there is; the same command goes on from there, to the same result.",
    )
    result.add_argument(
        "--pipeline",
        type=Path,
        default=ROOT / "tiny",
        help="a diffusers folder (default: the embedded pipeline)",
    )
    result.add_argument(
        "--teacher", default=None, help="its UNet's folder (default: teacher where there is one, else unet)"
    )
    result.add_argument("--prompts", type=Path, required=True, help="a text file, one prompt a line")
    result.add_argument("--output", type=Path, required=True, help="the student's .safetensors file")
    result.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(96, 96),
        metavar=("WIDTH", "HEIGHT"),
        help="of the pictures, pixels",
    )
    result.add_argument("--updates", type=int, default=2000, help="of stage one (default: %(default)s)")
    result.add_argument(
        "--scales",
        type=float,
        nargs=2,
        default=(1.0, 8.0),
        metavar=("LOW", "HIGH"),
        help="guidance (default: 1 8)",
    )
    result.add_argument(
        "--student-steps",
        type=int,
        default=0,
        help="of the last student of stage two; 0: stage one alone (default)",
    )
    result.add_argument(
        "--first-steps", type=int, default=8, help="of the first student of stage two (default: %(default)s)"
    )
    result.add_argument(
        "--step-updates", type=int, default=600, help="of each halving (default: %(default)s)"
    )
    result.add_argument("--batch", type=int, default=4)
    result.add_argument("--rank", type=int, default=16)
    result.add_argument("--rate", type=float, default=1e-3, help="learning rate (default: %(default)s)")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--negative", default="", help="the negative prompt of the teacher's guidance")
    result.add_argument("--no-checkpointing", action="store_true", help="faster, more memory")
    result.add_argument(
        "--students", type=int, default=1, help="that share the prompts between them by likeness (default: 1)"
    )
    result.add_argument(
        "--diffusers",
        type=Path,
        help="a folder for the finished student in diffusers' layout, merged into its teacher",
    )
    result.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    return result


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.students > 1 and options.diffusers is not None:
        parser().error("--diffusers merges one student into its teacher; expected --students 1 with it.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]("dizzydiff", ROOT)
    return distil_of(options)


def distil_of(options: argparse.Namespace) -> int:
    """Run what the command line says. Exit status: 0 done, 1 a mistake that is said, 130 stopped and
    saved.
    """
    import torch

    from dizzydiff.devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=options.cpu or not torch.cuda.is_available())
    from dizzydiff.students.distill.merged import write_folder
    from dizzydiff.students.distill.native import diffusers_names
    from dizzydiff.students.distill.run import Job, Running, distil
    from dizzydiff.students.distill.several import distil_several
    from dizzydiff.students.distill.training import Plan, Progress
    from dizzydiff.students.errors import StudentError
    from dizzydiff.students.loader import Source, load_unet
    from dizzydiff.students.pipeline import load_clip

    stop: list[int] = []

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.append(number)

    def tell(running: Running, progress: Progress) -> None:
        if running.done % TOLD_EVERY == 0 or running.training.finished:
            recent = progress.losses[-TOLD_EVERY:]
            logging.info("update %d of %d, loss %.4g", running.done, running.total, sum(recent) / len(recent))
        if stop:
            raise Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    try:
        folder = options.teacher or ("teacher" if (options.pipeline / "teacher").is_dir() else "unet")
        name = f"{options.pipeline.name}/{folder}"
        model, clip = load_unet(Source(options.pipeline / folder, name)), load_clip(options.pipeline, [])
        plan = Plan(
            options.updates,
            tuple(options.scales),
            options.batch,
            options.rate,
            options.seed,
            options.rank,
            options.student_steps,
            options.first_steps,
            options.step_updates,
        )
        width, height = options.size
        prompts = [
            line.strip() for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()
        ]

        def encode(text: str) -> Any:
            return clip.encode_from_tokens_scheduled(clip.tokenize(text))

        job = Job(
            model,
            name,
            prompts,
            encode,
            (model.model.latent_format.latent_channels, height // 8, width // 8),
            plan,
            options.output,
            options.negative,
            checkpointing=not options.no_checkpointing,
        )
        if options.students > 1:
            distil_several(job, options.students, tell)
        else:
            result = distil(job, tell)
            if options.diffusers is not None:
                write_folder(
                    options.diffusers, options.pipeline / folder, result.adapter, diffusers_names(model)
                )
    except Stopped:
        logging.info("stopped; %s holds what there is, and the same command goes on", options.output)
        return 130
    except (StudentError, OSError) as error:
        logging.error("%s", error)
        return 1
    logging.info("%s is done", options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
