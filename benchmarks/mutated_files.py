# SPDX-License-Identifier: GPL-3.0-or-later
"""Students, adapters, manifests and pipelines whose files are damaged at random: each is refused with an
error of the pack that names the file, or loaded and samples finite numbers.

Bars: nothing else is raised, and none takes over 2 s of the processor or 1 GiB of memory. Every file's damage
follows from its number.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ._mutations import OF_CONFIGS, OF_WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
FILES, QUICK_FILES = 3000, 120
MOST_SECONDS, MOST_BYTES = 2.0, 2**30
SLOW = "took "
"""What a failure begins with that is one of time or memory alone."""
SMALL_UNET: dict[str, Any] = {
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 32,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


@dataclass(frozen=True)
class Subject:
    """One kind of file in a folder of its own, and how it is loaded from a copy of that folder."""

    name: str
    share: int
    folder: Path
    damaged: tuple[str, ...]
    load: Callable[[Path], Any]


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a kind of file, and one for each that did something else than it should."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    logging.getLogger().setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as work:
        subjects = make_subjects(Path(work))
        warm_up(subjects)
        return tried(subjects, QUICK_FILES if quick else FILES, Path(work) / "copy")


def warm_up(subjects: list[Subject]) -> None:
    """What is imported at the first load of a kind is not counted; and each loads undamaged."""
    for subject in subjects:
        subject.load(subject.folder)


def tried(subjects: list[Subject], count: int, copy: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    verdicts: dict[str, Counter[str]] = {subject.name: Counter() for subject in subjects}
    worst = {subject.name: [0.0, 0] for subject in subjects}
    deck = [subject for subject in subjects for _ in range(subject.share)]
    for number in range(count):
        subject = deck[number % len(deck)]
        row = damaged_once(subject, number, copy)
        verdicts[subject.name][row["verdict"]] += 1
        seconds, taken = worst[subject.name]
        worst[subject.name] = [max(seconds, row["seconds"]), max(taken, row["bytes"])]
        if "failed" in row:
            rows.append(row)
    return [
        {
            "kind": subject.name,
            "files": sum(verdicts[subject.name].values()),
            **dict(verdicts[subject.name]),
            "longest_s": worst[subject.name][0],
            "most_MiB": worst[subject.name][1] / 2**20,
        }
        for subject in subjects
    ] + rows


def damaged_once(subject: Subject, number: int, copy: Path) -> dict[str, Any]:
    """What became of one damaged copy; ``failed`` says what it should not have done."""
    from ..students.errors import StudentError

    rng = random.Random(number)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(subject.folder, copy)
    path = copy / rng.choice(subject.damaged)
    change = rng.choice(OF_CONFIGS if path.suffix == ".json" else OF_WEIGHTS)
    row: dict[str, Any] = {"kind": subject.name, "number": number, "damage": change(rng, path)}
    row["damage"] = f"{path.relative_to(copy)}: {row['damage']}"
    started = time.process_time()
    with PeakMemory() as memory:
        try:
            answer = subject.load(copy)
            row["verdict"] = "loaded"
            if not bool(answer.isfinite().all()):
                row["failed"] = "samples NaN"
        except StudentError as error:
            row["verdict"] = "refused"
            if not any(name in str(error) for name in (path.name, path.parent.name, str(copy))):
                row["failed"] = f"names no file: {error}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            row["verdict"] = "crashed"
            row["failed"] = f"{type(error).__name__}: {str(error)[:200]} at {where.filename}:{where.lineno}"
    row["seconds"], row["bytes"] = time.process_time() - started, memory.taken
    if row["seconds"] > MOST_SECONDS:
        row["failed"] = f"{SLOW}{row['seconds']:.1f} s"
    if row["bytes"] > MOST_BYTES:
        row["failed"] = f"{SLOW}{row['bytes'] / 2**20:.0f} MiB"
    return row


class PeakMemory:
    """The most memory of its own that the process held inside, above what it held before. In bytes."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = private_bytes()
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.peak = max(self.peak, private_bytes())

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.watcher.join()
        self.taken = max(0, max(self.peak, private_bytes()) - self.before)


def private_bytes() -> int:
    import psutil

    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def make_subjects(work: Path) -> list[Subject]:
    """Small random networks in the classes and layouts of diffusers and transformers."""
    pipeline = save_pipeline(work / "pipeline")
    alone = work / "student"
    alone.mkdir()
    shutil.copy(pipeline / "unet" / "diffusion_pytorch_model.safetensors", alone / "student.safetensors")
    adapters = work / "adapters"
    teacher = train_adapters(pipeline, adapters)
    weights = "diffusion_pytorch_model.safetensors"
    unet = (f"unet/{weights}", "unet/config.json", "unet/config.json", "scheduler/scheduler_config.json")
    clip = ("text_encoder/model.safetensors", "text_encoder/config.json", "text_encoder/config.json")
    vae = (f"vae/{weights}", "vae/config.json", "vae/config.json")
    return [
        Subject("student file", 3, alone, ("student.safetensors",), load_file),
        Subject("student folder", 3, pipeline, (*unet, "vae/config.json"), load_folder),
        Subject(
            "adapter",
            3,
            adapters,
            ("one.safetensors",),
            lambda f: load_adapter(f / "one.safetensors", teacher),
        ),
        Subject(
            "manifest",
            2,
            adapters,
            ("several.safetensors", "several.safetensors", "several_1of2.safetensors"),
            lambda f: load_adapter(f / "several.safetensors", teacher),
        ),
        Subject("text encoder", 2, pipeline, clip, load_text_encoder),
        Subject("VAE", 2, pipeline, vae, load_autoencoder),
    ]


def save_pipeline(folder: Path) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    UNet2DConditionModel(sample_size=8, time_cond_proj_dim=256, **SMALL_UNET).save_pretrained(folder / "unet")
    UNet2DConditionModel(sample_size=8, **SMALL_UNET).save_pretrained(folder / "teacher")
    DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
    ).save_pretrained(folder / "vae")
    return folder


def train_adapters(pipeline: Path, folder: Path) -> Any:
    """One adapter and two that share the prompts, each after one update; their teacher."""
    from ..students.distill.job import Job
    from ..students.distill.plan import Plan
    from ..students.distill.run import distill
    from ..students.distill.several import distill_several
    from ..students.loader import Source, load_unet

    teacher = load_unet(Source(pipeline / "teacher", "teacher"))

    def encode(text: str) -> list:
        generator = torch.Generator().manual_seed(len(text))
        return [[4 * torch.randn(1, 7, 16, generator=generator), {}]]

    def job(name: str) -> Job:
        return Job(
            teacher=teacher,
            teacher_name="teacher",
            prompts=["a", "bb"],
            encode=encode,
            shape=(4, 8, 8),
            plan=Plan(updates=1, batch=1, rank=2),
            path=folder / name,
            checkpointing=False,
        )

    distill(job("one.safetensors"))
    distill_several(job("several.safetensors"), 2)
    return teacher


def load_file(folder: Path) -> torch.Tensor:
    from ..students.loader import Source
    from ..students.student_model import load_student

    return predicted(load_student(Source(folder / "student.safetensors", "student.safetensors")))


def load_folder(folder: Path) -> torch.Tensor:
    from ..students.loader import Source, load_unet

    return predicted(load_unet(Source(folder / "unet", f"{folder.name}/unet")))


def load_adapter(file: Path, teacher: Any) -> torch.Tensor:
    from ..students.loader import Source
    from ..students.student_model import load_student

    return predicted(load_student(Source(file, file.name), teacher))


def load_text_encoder(folder: Path) -> torch.Tensor:
    from ..students.pipeline import load_clip

    clip = load_clip(folder, [])
    return clip.encode_from_tokens(clip.tokenize("a red circle"))


def load_autoencoder(folder: Path) -> torch.Tensor:
    from ..students.pipeline import load_vae

    return load_vae(folder).decode(torch.zeros(1, 4, 4, 4))


def predicted(model: Any) -> torch.Tensor:
    """One step of core's Euler from noise."""
    import comfy.sample

    context = 4 * torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    conditions = [[context, {"guidance": 4.0}]]
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            1,
            1.0,
            "euler",
            "simple",
            conditions,
            conditions,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=3,
        )
