# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes trained networks as a diffusers pipeline folder, every tensor in the narrowest type that loses
nothing more than fp16 does.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..common.files import write_json, write_safetensors
from . import codec, networks


def narrow(tensor: Tensor) -> Tensor:
    """fp8 where that is exact (the random token table, identity blocks), else fp16."""
    eighth = tensor.to(torch.float8_e4m3fn)
    return eighth if torch.equal(eighth.float(), tensor.float()) else tensor.half()


def _write(folder: Path, name: str, state: dict[str, Tensor], config: dict) -> None:
    weights = {key: narrow(value) for key, value in state.items()}
    write_safetensors(folder / f"{name}.safetensors", weights, {"format": "pt"})
    write_json(folder / "config.json", config)


def _config(model, **extra) -> dict:
    plain = (
        model.config.to_dict() if isinstance(model, PreTrainedModel) else json.loads(model.to_json_string())
    )
    return plain | extra


def write_pipeline(folder: Path, teacher: nn.Module, text_encoder: nn.Module, autoencoder: nn.Module) -> None:
    """``folder`` becomes a diffusers pipeline but for unet/, which is the student's: the CFG teacher lies in
    teacher/.
    """
    weights = "diffusion_pytorch_model"
    _write(folder / "teacher", weights, teacher.state_dict(), _config(teacher))
    text = {
        f"text_model.{key.removeprefix('text_model.')}": value
        for key, value in text_encoder.state_dict().items()
    }
    _write(folder / "text_encoder", "model", text, _config(text_encoder))
    preview = {"latent_rgb_factors": codec.RGB_FACTORS, "latent_rgb_bias": [0.0, 0.0, 0.0]}
    _write(folder / "vae", weights, autoencoder.state_dict(), _config(autoencoder, **preview))
    networks.scheduler().save_config(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    write_json(folder / "model_index.json", index)


def size(folder: Path) -> int:
    """Bytes of all weights below ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
