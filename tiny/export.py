# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes trained networks as a diffusers pipeline folder, every tensor in the narrowest type that loses
nothing more than fp16 does.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import codec, networks


def narrow(tensor: Tensor) -> Tensor:
    """fp8 where that is exact (the random token table, identity blocks), else fp16."""
    eighth = tensor.to(torch.float8_e4m3fn)
    return eighth if torch.equal(eighth.float(), tensor.float()) else tensor.half()


def _write(folder: Path, name: str, state: dict[str, Tensor], config: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    save_file(
        {key: narrow(value).contiguous() for key, value in state.items()}, part, metadata={"format": "pt"}
    )
    part.replace(folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def size(folder: Path) -> int:
    """Bytes of all weights below ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
