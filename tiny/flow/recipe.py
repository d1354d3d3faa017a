# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe of the embedded flow model: ``python3 dev.py tiny flow``. Resumes where it stopped.

Every number that shapes the result stands in this file or beside the loop that uses it.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ...common.files import write_json
from ...students.files import read_json
from .. import data, train
from ..evaluate import test_captions
from ..recipe import tell, write_losses
from . import autoencoder, codec, evaluate, export, network, pipeline, student, text
from .train import Pictures, flow_matching_loss

HOME = Path(__file__).resolve().parent
ROOT = HOME.parents[1]
PIPELINE = ROOT / "tiny"
SEED = 20261
PICTURES = 160_000
TEACHER = train.Schedule(updates=18_000, decay=4_500, batch=32, rate=1e-3, checkpoint_every=25)
DECODER = train.Schedule(updates=3000, decay=1500, batch=8, rate=3e-4)
SCALES = (1, 2, 4)
QUALITY = "quality.json"


def training_pictures(work: Path) -> Pictures:
    """The training set with what the text encoder says of its captions."""
    captions, latents = data.training_set(work, PICTURES, SEED, codec.encode)
    distinct = ["", *sorted(set(captions))]
    row = {caption: i for i, caption in enumerate(distinct)}
    context, pooled = text.encoded(work, PIPELINE, distinct)
    return Pictures(latents, torch.tensor([row[caption] for caption in captions]), context, pooled)


def teacher_run(work: Path) -> train.Run:
    """The teacher as far as it is trained."""
    teacher = network.flux(torch.Generator().manual_seed(SEED))
    teacher.guidance_in.requires_grad_(False)
    return train.Run(teacher, work / "teacher", TEACHER, network.OUTER)


def make_teacher(work: Path) -> Any:
    """The trained teacher, weights averaged."""
    pictures, run = training_pictures(work), teacher_run(work)

    def loss(generator: torch.Generator) -> torch.Tensor:
        x, captions = pictures.batch(TEACHER.batch, generator)
        return flow_matching_loss(run.model, x, captions, generator)

    run.train(loss, SEED)
    return run.average


def initial_autoencoder() -> Any:
    """The codec with the decoder of tiny/vae."""
    weights = load_file(PIPELINE / "vae" / "diffusion_pytorch_model.safetensors")
    return autoencoder.initial({key: w for key, w in weights.items() if key.startswith("decoder.")})


def make_autoencoder(work: Path) -> Any:
    """The codec with its trained decoder."""
    made = initial_autoencoder()
    autoencoder.train_decoder(made, work / "decoder", DECODER, SEED)
    return made


def judge(teacher: Any, vae: Any) -> evaluate.Judge:
    """Reads what ``teacher`` draws through ``vae``."""
    return evaluate.Judge(
        network=teacher,
        encode=lambda captions: text.encode(PIPELINE, captions),
        decode=lambda z: vae.taesd_decoder(autoencoder.HALF * z),
    )


def measure(teacher: Any, vae: Any, count: int = 500) -> dict[str, Any]:
    """The teacher at every scale on one and two objects mixed, and at the best one by kind of caption."""
    judged = judge(teacher, vae)
    mixed = test_captions(SEED + 3, count, (1, 2))
    by_scale = {g: judged.score(mixed, g, SEED + 4) for g in SCALES}
    best = max(by_scale, key=by_scale.__getitem__)
    return {
        "captions": count,
        "steps": evaluate.STEPS,
        "same_g": [{"g": g, "teacher": percent} for g, percent in by_scale.items()],
        "best_g": best,
        "teacher_best": judged.kinds(count, best, SEED + 1),
    }


def measure_student(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``rows`` of :func:`measure`, a scale each, with what the exported student shows of the same captions,
    from the same noises.
    """
    judged = student.Judge(pipeline.load(PIPELINE, [], student=True))
    mixed = test_captions(SEED + 3, count, (1, 2))
    return [row | {"student": judged.score(mixed, row["g"], SEED + 4)} for row in rows]


def score_so_far(work: Path, count: int) -> dict[str, Any]:
    """A few captions by the newest checkpoint, so that a long run can be judged while it goes on."""
    run = teacher_run(work)
    judged = judge(run.average, initial_autoencoder())
    one, two = (test_captions(SEED + 5, count, (things,)) for things in (1, 2))
    return {
        "update": run.update,
        **{f"g{g}": (judged.score(one, g, SEED), judged.score(two, g, SEED)) for g in (1, 2, 4)},
    }


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, measure, write the model into ``tiny/flow``."""
    parser = argparse.ArgumentParser(description="Make the embedded flow model from nothing.")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".dev" / "tiny-flow", help="training set, checkpoints and logs"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=int, help="only judge the newest checkpoint by this many captions")
    parser.add_argument("--student-only", action="store_true", help="of the teacher that is here already")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.score:
        logging.info("%s", json.dumps(score_so_far(options.work, options.score)))
        return
    (HOME / "log").mkdir(exist_ok=True)
    quality = read_json(HOME / QUALITY) if options.student_only else make_teacher_and_vae(options.work)
    losses = student.make_student(PIPELINE, options.work / "student.safetensors", tell)
    write_losses(HOME / "log" / "student.jsonl", losses)
    machine = {"machine": f"{platform.machine()}, {options.threads} threads", "torch": torch.__version__}
    scales = measure_student(quality["same_g"], quality["captions"])
    write_json(HOME / QUALITY, {**quality, "same_g": scales, **machine})


def make_teacher_and_vae(work: Path) -> dict[str, Any]:
    """Train and write both; how good they are."""
    teacher, vae = make_teacher(work), make_autoencoder(work)
    export.write_model(HOME, teacher)
    export.write_vae(HOME, vae)
    for part in ("teacher", "decoder"):
        shutil.copyfile(work / part / "log.jsonl", HOME / "log" / f"{part}.jsonl")
    return measure(teacher, vae)
