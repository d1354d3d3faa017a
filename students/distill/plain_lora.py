# SPDX-License-Identifier: GPL-3.0-or-later
"""A student at one guidance scale as a plain LoRA, in the keys that core's LoRA loader knows: for a ComfyUI
without this pack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import torch
from torch import Tensor

from .. import files
from ..adapter import LAYERS, Adapter, Manifest
from ..guidance import guidance_embedding, scales_tensor
from ..recipe import Recipe, recipe_of
from ..student_model import distilled
from .errors import NotExportable, OtherTraining
from .saving import SUFFIX, check_target, write_strings

SCALE, MADE_BY = "guidance_scale", "DizzyDiff: Export Student LoRA"
"""The key of g in the metadata; whose file it is."""


def student_in(model: Any) -> Adapter:
    """The adapter of a MODEL. Raises NotExportable for every other model."""
    found = distilled(model)
    if isinstance(found, Manifest):
        raise NotExportable(
            f"{found.path.name} joins {len(found.files)} students, each for its own prompts, and a LoRA is "
            f"one of them. Expected a single student: load {found.files[0]} or another of them, and export "
            "that."
        )
    if found is None:
        raise NotExportable(
            "This model is not a student of Distill Guidance. Expected its student, from Load Guided Student "
            "with the teacher connected: other students are whole networks, and no LoRA of anything."
        )
    return found


def plain_lora(model: Any, g: float) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the LoRA that makes of the teacher what ``model``, a student, is at scale g.

    The time layer W t_emb + b of the student is (W + up down) (t_emb + C e(w)) + b, whose last part does not
    depend on t: ``diff_b`` = (W + up down) C e(w). The pairs are the adapter's, with alpha = rank. Raises
    NotExportable.
    """
    adapter = student_in(model)
    network, layer = model.model.diffusion_model, adapter.time_layer
    scales = scales_tensor(g, g)
    adapter.guidance.warn_outside(scales, adapter.teacher_name)
    w = adapter.guidance.milliweights(scales)
    addition = adapter.projection.float() @ guidance_embedding(w, adapter.guidance)[0]
    tensors = {f"{LAYERS}{layer}.diff_b": weight_with_a_bias(model, layer, len(addition)) @ addition}
    for name in adapter.layers:
        shape = network.get_submodule(name.removeprefix(LAYERS)).weight.shape
        up, down = (adapter.lora[f"{name}.{part}.weight"] for part in ("lora_up", "lora_down"))
        tensors[f"{name}.lora_up.weight"] = up.reshape(*up.shape, *[1] * (len(shape) - 2))
        tensors[f"{name}.lora_down.weight"] = down.reshape(len(down), *shape[1:])
        tensors[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return tensors, metadata_of(adapter, g)


def weight_with_a_bias(model: Any, layer: str, inputs: int) -> Tensor:
    """W [F', F] of a MODEL's linear layer under all its patches, in fp32.

    Raises NotExportable where the layer has no bias that could hold a shift, or F is not ``inputs``.
    """
    key = f"{LAYERS}{layer}.weight"
    (stored, convert), *patches = model.get_key_patches(key)[key]
    plain = comfy.model_management.cast_to_device(stored, torch.device("cpu"), torch.float32, copy=True)
    weight = comfy.lora.calculate_weight(patches, convert(plain, inplace=True), key)
    bias = getattr(model.model.diffusion_model.get_submodule(layer), "bias", None)
    if bias is None or weight.shape != (len(bias), inputs):
        lacks = "no bias" if bias is None else "weights of a kind that cannot be read"
        raise NotExportable(
            f"{layer}, the layer that guidance joins in this network, has {lacks}: the guidance cannot "
            "become part of a LoRA. Expected plain weights and a bias: keep the student as it is, with Load "
            "Guided Student."
        )
    return weight


def other_patches(model: Any) -> int:
    """How many weights of a student MODEL somebody else has patched too."""
    own = {f"{name}.weight" for name in student_in(model).layers}
    return sum(len(patches) > (key in own) for key, patches in model.patches.items())


def metadata_of(adapter: Adapter, g: float) -> dict[str, str]:
    """Strings: what it is a LoRA of, and how it wants to be sampled, in core's names."""
    return {
        "made_by": MADE_BY,
        "teacher_name": adapter.teacher_name,
        "teacher": adapter.teacher,
        SCALE: f"{g:g}",
        "strength_model": "1",
        **(recipe_of(adapter.settings) or Recipe()).metadata(),
    }


def name_at(stem: str, g: float) -> str:
    """Of the file at scale g."""
    return f"{stem}_g{g:g}{SUFFIX}"


def export(model: Any, scales: list[float], place: Path) -> list[Path]:
    """One LoRA a scale beside ``place``: NAME_g4.safetensors for NAME.safetensors. An export of before is
    replaced.

    Nothing is written unless everything can be made. Raises NotExportable, OtherTraining where a file is
    something else, or CannotSave.
    """
    paths = {g: place.with_name(name_at(place.name.removesuffix(SUFFIX), g)) for g in scales}
    for path in paths.values():
        _check_free(path)
    made = {path: plain_lora(model, g) for g, path in paths.items()}
    for path, (tensors, metadata) in made.items():
        write_strings(path, tensors, metadata)
    return list(made)


def _check_free(path: Path) -> None:
    if path.is_file() and files.read_weights((path,))[1].get("made_by") != MADE_BY:
        raise OtherTraining(
            f"{path.name} exists and was not made by Export Student LoRA. Expected a free name: choose "
            "another, or remove the file."
        )
    check_target(path)
