# SPDX-License-Identifier: GPL-3.0-or-later
"""A student as a diffusers folder: the adapter merged into its teacher's weights, C as
``time_embedding.cond_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...common.files import write_json, write_safetensors
from .. import files
from ..adapter import LAYERS, Adapter
from ..layout import GUIDANCE_KEY
from .errors import CannotSave, UnsupportedTeacher


def merged_weights(
    teacher: Mapping[str, Tensor], adapter: Adapter, names: Mapping[str, str]
) -> dict[str, Tensor]:
    """The UNet's tensors in diffusers' keys: W + up down for every adapted layer, and C.

    teacher: tensors in diffusers' keys; names: diffusers' key -> core's key.
    """
    merged: dict[str, Tensor] = {}
    for key, weight in teacher.items():
        layer = LAYERS + names.get(key, "").removesuffix(".weight")
        if key.endswith(".weight") and f"{layer}.lora_up.weight" in adapter.lora:
            up, down = (adapter.lora[f"{layer}.{part}.weight"].float() for part in ("lora_up", "lora_down"))
            weight = (weight.float() + (up @ down).reshape(weight.shape)).to(weight.dtype)
        merged[key] = weight
    return {**merged, GUIDANCE_KEY: adapter.projection}


def write_folder(folder: Path, unet: Path, adapter: Adapter, names: Mapping[str, str]) -> None:
    """``folder``/unet becomes the student of the diffusers UNet in ``unet``, with the teacher's scheduler
    beside it if there is one.

    Raises UnsupportedTeacher for another network than the adapter's, CannotSave where the disk refuses.
    """
    source = files.read_checkpoint(unet)
    if source.config is None or not names or not set(source.weights) <= set(names):
        raise UnsupportedTeacher(
            f"{unet}: no UNet whose layers have names in diffusers. Expected a UNet2DConditionModel."
        )
    low, high = adapter.settings["guidance_scale_range"]
    config = {
        **source.config,
        "time_cond_proj_dim": adapter.guidance.width,
        "guidance_weight": "g - 1",
        "guidance_scale_range": [low, high],
    }
    weights = merged_weights(source.weights, adapter, names)
    try:
        write_safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors", weights, {"format": "pt"})
        write_json(folder / "unet" / "config.json", config)
        if source.scheduler is not None:
            write_json(folder / "scheduler" / "scheduler_config.json", source.scheduler)
    except OSError as error:
        raise CannotSave(
            f"{folder}: could not be written ({error}). Make room or choose another folder, and run again."
        ) from error
