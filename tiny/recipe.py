# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe of the embedded pipeline: decoder, teacher, student, measurement, files. Resumes where it stopped.

Run by ``python3 dev.py tiny``; every number that shapes the result stands in this file or beside the loop that uses it.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
from pathlib import Path

import torch

from . import codec, data, decoder, evaluate, export, networks, train

HOME = Path(__file__).parent
SEED = 20260
PICTURES = 160_000
DECODER = train.Schedule(updates=12_000, decay=4_000, batch=8, rate=7e-4)
TEACHER = train.Schedule(updates=22_000, decay=5_000, batch=32)
STUDENT = train.Schedule(updates=6_000, decay=1_800, batch=32, rate=5e-4)
STEPS = 50
SCALES = (1, 2, 4, 8)


def tokens_of(captions: list[str], tokenizer_folder: Path) -> torch.Tensor:
    """SD's CLIP tokens [n, 77] of captions, padded with the end token as ComfyUI pads."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def training_pictures(work: Path, tokenizer_folder: Path) -> train.Pictures:
    """The training set with its captions' tokens."""
    captions, latents = data.training_set(work, PICTURES, SEED)
    distinct = sorted(set(captions))
    tokens = tokens_of(["", *distinct], tokenizer_folder)
    row = {caption: i for i, caption in enumerate(distinct, start=1)}
    return train.Pictures(latents, tokens[[row[caption] for caption in captions]], tokens[0])


def measure(teacher: train.TextToLatent, student, decoder_net, tokenizer_folder: Path, count: int = 500) -> dict:
    """Prompt accuracy in percent: the teacher at g = 4 by kind of caption, and teacher against student at every g."""
    diffusion = train.Diffusion.of(networks.scheduler())
    with torch.inference_mode():
        empty = teacher.text_encoder(tokens_of([""], tokenizer_folder)).last_hidden_state

    def score(velocity, captions, seed):
        with torch.inference_mode():
            contexts = teacher.text_encoder(tokens_of([str(c) for c in captions], tokenizer_folder)).last_hidden_state
        return round(evaluate.accuracy(captions, evaluate.draw_captions(velocity, contexts, decoder_net, diffusion, STEPS, seed)), 1)

    kinds = {"one_object": ((1,), False), "two_objects": ((2,), False), "held_out_one": ((1,), True), "held_out_two": ((2,), True)}
    at_four = evaluate.teacher_velocity(teacher.unet, empty, 4)
    result: dict = {"captions": count, "steps": STEPS, "teacher_g4": {}, "same_g": []}
    for kind, (things, held_out) in kinds.items():
        captions = evaluate.test_captions(SEED + 1, count, things, held_out)
        result["teacher_g4"][kind] = score(at_four, captions, SEED + 2)
    captions = evaluate.test_captions(SEED + 3, count, (1, 2))
    for g in SCALES:
        row = {"g": g, "teacher": score(evaluate.teacher_velocity(teacher.unet, empty, g), captions, SEED + 4)}
        row["student"] = score(evaluate.student_velocity(student, g), captions, SEED + 4)
        result["same_g"].append(row)
        logging.info("%s", row)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, measure, write the pipeline into ``tiny/``."""
    parser = argparse.ArgumentParser(description="Make the embedded pipeline from nothing.")
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI folder, for SD's tokenizer")
    parser.add_argument("--work", type=Path, default=HOME / "work", help="training set, checkpoints and logs")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    tokenizer = options.comfyui / "comfy" / "sd1_tokenizer"

    torch.manual_seed(SEED)
    autoencoder = networks.autoencoder()
    autoencoder.load_state_dict(autoencoder.state_dict() | codec.closed_form_encoder(autoencoder.state_dict()))
    autoencoder.decoder = decoder.train_decoder(autoencoder.decoder, options.work / "decoder", DECODER, SEED)

    pictures = training_pictures(options.work, tokenizer)
    diffusion = train.Diffusion.of(networks.scheduler())
    torch.manual_seed(SEED)
    teacher = train.TextToLatent(networks.unet(), networks.text_encoder(torch.Generator().manual_seed(SEED)))
    teacher = train.train_teacher(teacher, pictures, diffusion, options.work / "teacher", TEACHER, SEED)
    torch.manual_seed(SEED)
    student = networks.student_of(teacher.unet)
    student = train.train_student(student, teacher, networks.GUIDANCE, pictures, diffusion, options.work / "student", STUDENT, SEED)

    export.write_pipeline(HOME, teacher.unet, student, teacher.text_encoder, autoencoder)
    for part in ("decoder", "teacher", "student"):
        shutil.copyfile(options.work / part / "log.jsonl", HOME / "log" / f"{part}.jsonl")
    measured = measure(teacher, student, autoencoder.decoder, tokenizer)
    measured |= {"bytes": export.size(HOME), "machine": f"{platform.machine()}, {options.threads} threads", "torch": torch.__version__}
    (HOME / "quality.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
