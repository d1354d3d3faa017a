# SPDX-License-Identifier: GPL-3.0-or-later
"""A student's step beside its teacher's CFG step, and what the guidance costs of a step.

Bars: step ratio at most 0.55 at batch 1, guidance at most 1 % of a step. Student and teacher are timed
alternately in one run and compared by medians, so that a busy machine slows both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
NARROW_SD15 = {
    "block_out_channels": (160, 320, 640, 640),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a network: medians in milliseconds and the two ratios."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT)
    from ..students.loader import Source, load_student, load_unet

    repeats = 10 if quick else 40
    with tempfile.TemporaryDirectory() as folder:
        networks = {"narrow SD1.5, 32x32 latent": (*save_narrow_sd15(Path(folder)), 32)}
        if (ROOT / "tiny" / "unet" / "config.json").is_file():
            networks["tiny, 16x16 latent"] = (ROOT / "tiny" / "unet", ROOT / "tiny" / "teacher", 16)
        return [
            {
                "network": name,
                **measure(
                    load_student(Source(student, name)), load_unet(Source(teacher, name)), size, repeats
                ),
            }
            for name, (student, teacher, size) in networks.items()
        ]


def save_narrow_sd15(folder: Path) -> tuple[Path, Path]:
    """Random weights of SD1.5's layout at half its width: student and teacher."""
    from diffusers import UNet2DConditionModel

    for name, width in (("unet", 256), ("teacher", None)):
        torch.manual_seed(0)
        UNet2DConditionModel(time_cond_proj_dim=width, **NARROW_SD15).save_pretrained(folder / name)
    return folder / "unet", folder / "teacher"


def measure(student: Any, teacher: Any, size: int, repeats: int) -> dict[str, float]:
    """Medians over ``repeats`` alternating rounds."""
    network = student.model.diffusion_model
    device = student.load_device
    context = torch.randn(1, 77, student.model.model_config.unet_config["context_dim"])
    times, milliweights = torch.tensor([500.0], device=device), torch.tensor([3000], device=device)
    one: list[float] = []
    two: list[float] = []
    guidance: list[float] = []
    with torch.inference_mode():
        for round_ in range(repeats + 1):
            measured = (
                step_seconds(student, context, size, cfg=1.0),
                step_seconds(teacher, context, size, cfg=4.0),
                seconds(lambda: network.guided_embedding(times, milliweights, torch.float32), device),
            )
            if round_:  # the first one also loads
                for values, value in zip((one, two, guidance), measured, strict=True):
                    values.append(value)
    student_s, teacher_s, guidance_s = (statistics.median(values) for values in (one, two, guidance))
    return {
        "student_step_ms": 1000 * student_s,
        "teacher_cfg_step_ms": 1000 * teacher_s,
        "step_ratio": student_s / teacher_s,
        "guidance_ms": 1000 * guidance_s,
        "guidance_share": guidance_s / student_s,
    }


def step_seconds(model: Any, context: torch.Tensor, size: int, cfg: float) -> float:
    """The second of two model calls inside a sampler, as core makes them: conds, batching and guider
    included.
    """
    import comfy.sample
    import comfy.samplers

    taken: list[float] = []

    def timed(
        inner: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool,
    ) -> torch.Tensor:
        for _ in range(2):
            taken.append(seconds(lambda: inner(x, sigmas[:1], **extra_args), x.device))
        return x

    noise = torch.randn(1, 4, size, size)
    comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.KSAMPLER(timed),
        torch.tensor([1.0, 0.0]),
        [[context, {"guidance": 4.0}]],
        [[context * 0.5, {}]],
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    return taken[-1]


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start
