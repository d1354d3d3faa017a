# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe of the embedded pipeline: decoder, teacher, student (by the engine for users' models),
measurement. Resumes where it stopped.

Run by ``python3 dev.py tiny``; every number that shapes the result stands in this file or beside the loop
that uses it.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel

from ..devtools.comfyui import locate
from . import codec, data, decoder, evaluate, export, networks, train

HOME = Path(__file__).parent
SEED = 20260
PICTURES = 160_000
DECODER = train.Schedule(updates=12_000, decay=4_000, batch=8, rate=7e-4)
TEACHER = train.Schedule(updates=22_000, decay=5_000, batch=32)
STEPS = 50
SCALES = (1, 2, 4, 8)


def tokenizer_folder() -> Path:
    """SD's tokenizer, as ComfyUI ships it."""
    return locate(HOME.parent).path / "comfy" / "sd1_tokenizer"


def tokens_of(captions: list[str], tokenizer_folder: Path) -> torch.Tensor:
    """SD's CLIP tokens [n, 77] of captions, padded with the end token as ComfyUI pads."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    return tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


def training_pictures(
    work: Path, tokenizer_folder: Path, count: int = PICTURES, seed: int = SEED
) -> train.Pictures:
    """The training set with its captions' tokens."""
    captions, latents = data.training_set(work, count, seed)
    distinct = sorted(set(captions))
    tokens = tokens_of(["", *distinct], tokenizer_folder)
    row = {caption: i for i, caption in enumerate(distinct, start=1)}
    return train.Pictures(latents, tokens[[row[caption] for caption in captions]], tokens[0])


def make_teacher(work: Path) -> None:
    """Decoder, then teacher and text encoder, written into ``tiny/``."""
    tokenizer = tokenizer_folder()
    torch.manual_seed(SEED)
    autoencoder = networks.autoencoder()
    autoencoder.load_state_dict(
        autoencoder.state_dict() | codec.closed_form_encoder(autoencoder.state_dict())
    )
    autoencoder.decoder = decoder.train_decoder(autoencoder.decoder, work / "decoder", DECODER, SEED)

    pictures = training_pictures(work, tokenizer)
    torch.manual_seed(SEED)
    teacher = train.TextToLatent(networks.unet(), networks.text_encoder(torch.Generator().manual_seed(SEED)))
    diffusion = train.Diffusion.of(networks.scheduler())
    teacher = train.train_teacher(teacher, pictures, diffusion, work / "teacher", TEACHER, SEED)
    export.write_pipeline(HOME, teacher.unet, teacher.text_encoder, autoencoder)
    for part in ("decoder", "teacher"):
        shutil.copyfile(work / part / "log.jsonl", HOME / "log" / f"{part}.jsonl")


def measure(pipeline: Path, count: int = 500) -> dict:
    """Prompt accuracy in percent of the written files: the teacher at g = 4 by kind of caption, and teacher
    against student at every g.
    """
    teacher, student = (
        UNet2DConditionModel.from_pretrained(pipeline / part, torch_dtype=torch.float32)
        for part in ("teacher", "unet")
    )
    text_encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder", torch_dtype=torch.float32)
    decoder_net = AutoencoderTiny.from_pretrained(pipeline / "vae", torch_dtype=torch.float32).decoder
    diffusion = train.Diffusion.of(networks.scheduler())

    @torch.inference_mode()
    def contexts_of(captions):
        return text_encoder(
            tokens_of([str(caption) for caption in captions], tokenizer_folder())
        ).last_hidden_state

    def score(velocity, captions, seed):
        images = evaluate.draw_captions(velocity, contexts_of(captions), decoder_net, diffusion, STEPS, seed)
        return round(evaluate.accuracy(captions, images), 1)

    empty = contexts_of([""])
    kinds = {
        "one_object": ((1,), False),
        "two_objects": ((2,), False),
        "held_out_one": ((1,), True),
        "held_out_two": ((2,), True),
    }
    at_four = evaluate.teacher_velocity(teacher, empty, 4)
    result: dict = {"captions": count, "steps": STEPS, "teacher_g4": {}, "same_g": []}
    for kind, (things, held_out) in kinds.items():
        captions = evaluate.test_captions(SEED + 1, count, things, held_out)
        result["teacher_g4"][kind] = score(at_four, captions, SEED + 2)
    captions = evaluate.test_captions(SEED + 3, count, (1, 2))
    for g in SCALES:
        row = {"g": g, "teacher": score(evaluate.teacher_velocity(teacher, empty, g), captions, SEED + 4)}
        row["student"] = score(evaluate.student_velocity(student, g), captions, SEED + 4)
        result["same_g"].append(row)
        logging.info("%s", row)
    return result


def tell(running, progress) -> None:
    """Say how far the student is."""
    if progress.update % train.LOG_EVERY == 0:
        logging.info("student: update %d of %d", running.done, running.total)


def write_losses(file: Path, losses: list[float]) -> None:
    """A line for every ``LOG_EVERY`` updates, as ``train.Run`` writes them."""
    every = train.LOG_EVERY
    rows = [
        {"update": end, "loss": sum(losses[end - every : end]) / every}
        for end in range(every, len(losses) + 1, every)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, measure, write the pipeline into ``tiny/``."""
    parser = argparse.ArgumentParser(description="Make the embedded pipeline from nothing.")
    parser.add_argument(
        "--work", type=Path, default=HOME.parent / ".dev" / "tiny", help="training set, checkpoints and logs"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--student-only", action="store_true", help="of the teacher that is in tiny/ already")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.student_only:
        make_teacher(options.work)
    from .student import make_student

    losses = make_student(HOME, options.work / "student.safetensors", tell)
    write_losses(HOME / "log" / "student.jsonl", losses)
    measured = measure(HOME)
    measured |= {
        "bytes": export.size(HOME),
        "machine": f"{platform.machine()}, {options.threads} threads",
        "torch": torch.__version__,
    }
    (HOME / "quality.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
