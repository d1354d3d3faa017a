# SPDX-License-Identifier: GPL-3.0-or-later
"""Text encoders and VAEs of diffusers folders of any size, in ComfyUI's own CLIP and VAE classes."""

import re
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy.diffusers_convert import convert_vae_state_dict
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.supported_models_base import ClipTarget

from . import files
from .errors import ConfigMismatch, UnsupportedModel
from .files import Config, Weights

CLIP_VOCABULARY = 49408
SD_VAE_CHANNELS = [128, 256, 512, 512]


def _read(folder: Path, stem: str = "diffusion_pytorch_model") -> tuple[Config, Weights]:
    """Config and weights; fp8 tensors cast up to fp16, since these networks compute in wider types than they
    may be stored.
    """
    config = files.read_json(folder / "config.json")
    weights, _ = files.read_weights(files.weight_files(folder, stem))
    files.check_finite(weights, str(folder))
    return config, {
        key: t.half() if t.is_floating_point() and t.element_size() == 1 else t for key, t in weights.items()
    }


def _check_filled(network: torch.nn.Module, weights: Weights, folder: Path) -> None:
    """Raise ConfigMismatch unless the weights fill the network."""
    for key, tensor in network.state_dict().items():
        if key not in weights or weights[key].shape != tensor.shape:
            found = list(weights[key].shape) if key in weights else "missing"
            raise ConfigMismatch(
                f"{folder}: {key} is {found}; its config.json asks for {list(tensor.shape)}. Expected a "
                "config and weights from the same model; download both again."
            )


def load_clip(pipeline: Path, embeddings: list[str], disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """CLIP from text_encoder (and text_encoder_2), with ComfyUI's own tokenizer."""
    folder, second = pipeline / "text_encoder", pipeline / "text_encoder_2"
    config, weights = _read(folder, "model")
    if (
        config.get("model_type", "clip_text_model") != "clip_text_model"
        or config.get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY
    ):
        raise UnsupportedModel(
            f"{folder}: {config.get('model_type')} with {config.get('vocab_size')} tokens; expected a CLIP "
            f"text model with Stable Diffusion's {CLIP_VOCABULARY} tokens."
        )
    if "embeddings.token_embedding.weight" in weights:
        weights = {f"text_model.{key}": tensor for key, tensor in weights.items()}
    if second.is_dir() or config["hidden_size"] == 1024:
        parts = [weights, _read(second, "model")[1]] if second.is_dir() else [weights]
        clip = comfy.sd.load_text_encoder_state_dicts(
            parts, embedding_directory=embeddings, disable_dynamic=disable_dynamic
        )
    else:
        clip = _clip_of_config(config, weights, folder, embeddings, disable_dynamic)
    clip.patcher.cached_patcher_init = (load_clip_patcher, (pipeline, embeddings))
    return clip


def _clip_of_config(
    config: Config, weights: Weights, folder: Path, embeddings: list[str], disable_dynamic: bool
) -> comfy.sd.CLIP:
    model_options = {"clip_l_model_config": {"eos_token_id": 49407, **config}}
    clip = comfy.sd.CLIP(
        ClipTarget(SD1Tokenizer, SD1ClipModel),
        embedding_directory=embeddings,
        model_options=model_options,
        parameters=sum(t.numel() for t in weights.values()),
        disable_dynamic=disable_dynamic,
    )
    weights = {"text_projection.weight": torch.eye(config["hidden_size"]), **weights}
    _check_filled(clip.cond_stage_model.clip_l.transformer, weights, folder)
    clip.load_sd(weights)
    return clip


def load_clip_patcher(pipeline: Path, embeddings: list[str], disable_dynamic: bool = False) -> Any:
    return load_clip(pipeline, embeddings, disable_dynamic).patcher


def load_vae(pipeline: Path) -> comfy.sd.VAE:
    """VAE from an AutoencoderTiny or AutoencoderKL folder."""
    folder = pipeline / "vae"
    config, weights = _read(folder)
    kind = config.get("_class_name")
    if kind not in ("AutoencoderTiny", "AutoencoderKL"):
        raise UnsupportedModel(f"{folder}: VAE class {kind!r}; expected AutoencoderKL or AutoencoderTiny.")
    try:
        vae = (
            comfy.sd.VAE(sd=tiny_to_taesd(weights))
            if kind == "AutoencoderTiny"
            else _kl_of_config(config, weights)
        )
    except (RuntimeError, KeyError) as error:
        raise ConfigMismatch(
            f"{folder}: the weights are not those of an {kind} that ComfyUI can build ({error}). Expected a "
            "config and weights from the same model; download both again."
        ) from error
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (load_vae_patcher, (pipeline,))
    return vae


def load_vae_patcher(pipeline: Path, disable_dynamic: bool = False) -> Any:
    return load_vae(pipeline).patcher


def tiny_to_taesd(weights: Weights) -> Weights:
    """diffusers' AutoencoderTiny keys -> core's TAESD, whose decoder counts its Clamp as layer 0."""

    def renamed(key: str) -> str:
        key = re.sub(r"^encoder\.layers\.", "taesd_encoder.", key)
        return re.sub(r"^decoder\.layers\.(\d+)", lambda m: f"taesd_decoder.{int(m[1]) + 1}", key)

    scales = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    return {renamed(key): tensor for key, tensor in weights.items()} | scales


def _kl_of_config(config: Config, weights: Weights) -> comfy.sd.VAE:
    channels = list(config["block_out_channels"])
    if channels == SD_VAE_CHANNELS:
        return comfy.sd.VAE(sd=weights)
    levels = len(channels)
    weights = convert_vae_state_dict(weights)
    # Core's conversion numbers the decoder's levels as if there were four.
    weights = {
        re.sub(r"^decoder\.up\.(\d)", lambda m: f"decoder.up.{int(m[1]) - 4 + levels}", key): t
        for key, t in weights.items()
    }
    ddconfig = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": config.get("layers_per_block", 2),
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    vae = comfy.sd.VAE(
        sd=weights, config={"params": {"ddconfig": ddconfig, "embed_dim": config["latent_channels"]}}
    )
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (levels - 1)
    vae.latent_channels = config["latent_channels"]
    return vae
