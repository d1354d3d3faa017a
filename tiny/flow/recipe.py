# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe of the embedded flow model: ``python3 dev.py tiny flow``. Resumes where it stopped.

Every number that shapes the result stands in this file or beside the loop that uses it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from ...devtools.inprocess import enter_comfyui
from .. import data, train
from . import codec, network, text
from .train import Pictures, flow_matching_loss

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "tiny"
SEED = 20261
PICTURES = 40_000
TEACHER = train.Schedule(updates=60_000, decay=12_000, batch=32, rate=1e-3, checkpoint_every=100)


def training_pictures(work: Path) -> Pictures:
    """The training set with what the text encoder says of its captions."""
    captions, latents = data.training_set(work, PICTURES, SEED, codec.encode)
    distinct = ["", *sorted(set(captions))]
    row = {caption: i for i, caption in enumerate(distinct)}
    context, pooled = text.encoded(work / "text.safetensors", PIPELINE, distinct)
    return Pictures(latents, torch.tensor([row[caption] for caption in captions]), context, pooled)


def make_teacher(work: Path) -> Any:
    """The trained teacher, weights averaged."""
    pictures = training_pictures(work)
    teacher = network.flux(torch.Generator().manual_seed(SEED))
    teacher.guidance_in.requires_grad_(False)
    run = train.Run(teacher, work / "teacher", TEACHER, network.OUTER)

    def loss(generator: torch.Generator) -> torch.Tensor:
        x, captions = pictures.batch(TEACHER.batch, generator)
        return flow_matching_loss(run.model, x, captions, generator)

    run.train(loss, SEED)
    return run.average


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet."""
    parser = argparse.ArgumentParser(description="Make the embedded flow model from nothing.")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".dev" / "tiny-flow", help="training set, checkpoints and logs"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    enter_comfyui(ROOT)
    make_teacher(options.work)
