# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded flow model as ComfyUI holds it. Nothing of its training is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import comfy.sd
import comfy.utils

from ...students.loader import Source, load_unet
from ...students.pipeline import load_clip
from ...students.student_model import load_student

NAME, STUDENT_NAME = "tiny/flow", "tiny/flow/student"
MODEL, STUDENT, VAE = "diffusion_model.safetensors", "student.safetensors", "vae.safetensors"


class Loaded(NamedTuple):
    """MODEL, CLIP and VAE."""

    model: Any
    clip: Any
    vae: Any


def load(embedded: Path, embeddings: list[str], student: bool = False) -> Loaded:
    """The flow model, or its student, and the autoencoder in ``embedded``/flow, with the text encoder in
    ``embedded``.
    """
    folder = embedded / "flow"
    model = load_unet(Source(folder / MODEL, NAME))
    if student:
        model = load_student(Source(folder / STUDENT, STUDENT_NAME), model)
    return Loaded(model, load_clip(embedded, embeddings), load_vae(folder / VAE))


def load_vae(file: Path, disable_dynamic: bool = False) -> comfy.sd.VAE:
    """As core's Load VAE; fp8 becomes fp16 first, as no VAE computes in fp8."""
    weights, metadata = comfy.utils.load_torch_file(str(file), return_metadata=True)
    weights = {key: t.half() if t.element_size() == 1 else t for key, t in weights.items()}
    vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (load_vae_patcher, (file,))
    return vae


def load_vae_patcher(file: Path, disable_dynamic: bool = False) -> Any:
    """The VAE's patcher, for ComfyUI to load it again by."""
    return load_vae(file, disable_dynamic).patcher
