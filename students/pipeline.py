# SPDX-License-Identifier: GPL-3.0-or-later
"""Text encoders and VAEs of diffusers folders of any size, in ComfyUI's own CLIP and VAE classes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy.diffusers_convert import convert_vae_state_dict
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
from comfy.supported_models_base import ClipTarget

from . import files
from .errors import ConfigMismatch, StudentError, UnsupportedModel
from .files import Config, Weights

CLIP_VOCABULARY = 49408
SD2_CLIP_WIDTH = 1024
SD_VAE_CHANNELS = [128, 256, 512, 512]
CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
KL_LEVEL = re.compile(r"encoder\.down_blocks\.(\d+)\.")
KL_RESNET = re.compile(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")


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


def _agreeing(config: Config, found: Mapping[str, Any], folder: Path) -> Config:
    """The config with what the weights say. Raises ConfigMismatch where it says otherwise, before anything of
    a size that only the config asks for is built.
    """
    for key, value in found.items():
        if config.get(key, value) != value:
            raise ConfigMismatch(
                f"{folder}: config.json says {key} = {str(config[key])[:40]}, the weights have {value!r}. "
                "Expected a config and weights from the same model; download both again."
            )
    return {**config, **found}


@contextlib.contextmanager
def _building(folder: Path, what: str) -> Iterator[None]:
    """What core cannot make of the weights is said as ConfigMismatch."""
    try:
        yield
    except (StudentError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigMismatch(
            f"{folder}: the weights are not those of {what} that ComfyUI can build "
            f"({type(error).__name__}: {error}). Expected a config and weights from the same model; download "
            "both again."
        ) from error


def load_clip(pipeline: Path, embeddings: list[str], disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """CLIP from text_encoder (and text_encoder_2), with ComfyUI's own tokenizer. Raises StudentError."""
    folder, second = pipeline / "text_encoder", pipeline / "text_encoder_2"
    config, weights = _read(folder, "model")
    if (
        config.get("model_type", "clip_text_model") != "clip_text_model"
        or config.get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY
    ):
        raise UnsupportedModel(
            f"{folder}: {str(config.get('model_type'))[:40]} with {str(config.get('vocab_size'))[:40]} "
            f"tokens; expected a CLIP text model with Stable Diffusion's {CLIP_VOCABULARY} tokens."
        )
    if "embeddings.token_embedding.weight" in weights:
        weights = {f"text_model.{key}": tensor for key, tensor in weights.items()}
    config = _agreeing(config, clip_layout(weights, folder), folder)
    with _building(folder, "a CLIP text model"):
        if second.is_dir() or config["hidden_size"] == SD2_CLIP_WIDTH:
            parts = [weights, _read(second, "model")[1]] if second.is_dir() else [weights]
            clip = comfy.sd.load_text_encoder_state_dicts(
                parts, embedding_directory=embeddings, disable_dynamic=disable_dynamic
            )
        else:
            clip = _clip_of_config(config, weights, folder, embeddings, disable_dynamic)
    clip.patcher.cached_patcher_init = (load_clip_patcher, (pipeline, embeddings))
    return clip


def clip_layout(weights: Weights, folder: Path) -> dict[str, int]:
    """What a CLIP text model's shapes say of its config. Raises ConfigMismatch."""
    text = "text_model."
    needed = (f"{text}embeddings.token_embedding.weight", f"{text}embeddings.position_embedding.weight")
    first = f"{text}encoder.layers.0.mlp.fc1.weight"
    for key in (*needed, first):
        if key not in weights or weights[key].ndim != 2:
            raise ConfigMismatch(
                f"{folder}: {key} is missing. Expected a CLIP text model; download it again."
            )
    layers = {int(found[1]) for key in weights if (found := CLIP_LAYER.match(key))}
    return {
        "hidden_size": weights[needed[0]].shape[1],
        "max_position_embeddings": weights[needed[1]].shape[0],
        "intermediate_size": weights[first].shape[0],
        "num_hidden_layers": len(layers),
    }


def _clip_of_config(
    config: Config, weights: Weights, folder: Path, embeddings: list[str], disable_dynamic: bool
) -> comfy.sd.CLIP:
    heads = int(files.number_in(config, "num_attention_heads", 12, (1, config["hidden_size"]), str(folder)))
    if config["hidden_size"] % heads:
        raise ConfigMismatch(
            f"{folder}: config.json says num_attention_heads = {heads}, which does not divide the weights' "
            f"width of {config['hidden_size']}. Expected a config and weights from the same model; download "
            "both again."
        )
    model_config = {"eos_token_id": 49407, "hidden_act": "quick_gelu", **config, "num_attention_heads": heads}
    clip = comfy.sd.CLIP(
        ClipTarget(SD1Tokenizer, SD1ClipModel),
        embedding_directory=embeddings,
        model_options={"clip_l_model_config": model_config},
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
    with _building(folder, f"an {kind}"):
        if kind == "AutoencoderTiny":
            vae = _filled_vae(tiny_to_taesd(weights), None, folder)
        else:
            vae = _kl_of_config(config, weights, folder)
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


def _filled_vae(weights: Weights, config: Config | None, folder: Path) -> comfy.sd.VAE:
    """Core's VAE, of whose tensors none is missing: core itself would leave those at random."""
    vae = comfy.sd.VAE(sd=dict(weights), config=config)
    if vae.first_stage_model is not None:
        _check_filled(vae.first_stage_model, weights, folder)
    return vae


def _kl_of_config(config: Config, weights: Weights, folder: Path) -> comfy.sd.VAE:
    config = _agreeing(config, kl_layout(weights, folder), folder)
    channels, levels = config["block_out_channels"], len(config["block_out_channels"])
    weights = convert_vae_state_dict(weights)
    if channels == SD_VAE_CHANNELS:
        return _filled_vae(weights, None, folder)
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
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": ddconfig, "embed_dim": config["latent_channels"]}
    vae = _filled_vae(weights, {"params": params}, folder)
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (levels - 1)
    vae.latent_channels = config["latent_channels"]
    return vae


def kl_layout(weights: Weights, folder: Path) -> dict[str, Any]:
    """What an AutoencoderKL's shapes say of its config. Raises ConfigMismatch."""
    levels = {int(found[1]) for key in weights if (found := KL_LEVEL.match(key))}
    resnets = {found[1] for key in weights if (found := KL_RESNET.match(key))}
    firsts = [f"encoder.down_blocks.{level}.resnets.0.conv2.weight" for level in range(len(levels))]
    for key in (*firsts, "decoder.conv_in.weight"):
        if key not in weights or weights[key].ndim != 4:
            raise ConfigMismatch(f"{folder}: {key} is missing. Expected an AutoencoderKL; download it again.")
    return {
        "block_out_channels": [weights[key].shape[0] for key in firsts],
        "layers_per_block": len(resnets),
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
    }
