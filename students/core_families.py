# SPDX-License-Identifier: GPL-3.0-or-later
"""Students in networks of core's own: loaded by core, with what core has no place for put beside it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP

from . import second_time
from .errors import ConfigMismatch, UnsupportedModel
from .files import Checkpoint, Weights, check_finite, check_floating, number_in
from .second_time import SecondTime, Together

CAUSAL = "far_patch_embedding"
"""Of AnyFlow's causal networks, which remember the frames before."""
Z_IMAGE_OF_DIFFUSERS = "noise_refiner.0.attention.norm_k.weight"
WAN_NAMES = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.delta_embedder\.linear_1\.", "delta_embedding.0."),
    (r"^condition_embedder\.delta_embedder\.linear_2\.", "delta_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
)
"""diffusers' names of Wan's tensors -> core's. Only the norm before the cross-attention has weights."""


def load_core_family(
    path: Path, name: str, dtype: torch.dtype | None, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """Flux, HunyuanVideo, HunyuanImage: core's loader and core's guidance, which gains one g a row."""
    if path.is_dir():
        raise UnsupportedModel(
            f"{name}: a diffusers folder of a transformer. Expected one .safetensors file of it, "
            "under models/diffusion_models."
        )
    patcher = comfy.sd.load_diffusion_model(
        str(path), model_options={} if dtype is None else {"dtype": dtype}, disable_dynamic=disable_dynamic
    )
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "dizzydiff_guidance_rows", guidance_of_rows)
    return patcher


def guidance_of_rows(
    executor: Any, x: torch.Tensor, *args: Any, guidance: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor:
    """Core turns a list of N scales into [B, N]: row i is to have scale i mod N."""
    if guidance is None:
        return executor(x, *args, **kwargs)
    if guidance.ndim == 2:
        row = torch.arange(guidance.shape[0], device=guidance.device)
        guidance = guidance[row, row % guidance.shape[1]]
    return executor(x, *args, guidance=guidance, **kwargs)


def with_second_time(patcher: Any, family: SecondTime, name: str) -> Any:
    """The MODEL, whose rows now each have the second time that follows from their noise level."""
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, second_time.KEY, Together(family, name))
    return patcher


def load_second_time(
    found: Checkpoint, family: SecondTime, name: str, dtype: torch.dtype | None, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """Core's network with a second embedder of time beside its first. Raises UnsupportedModel and
    ConfigMismatch.
    """
    weights = in_core_keys(found.weights, family, name)
    family = family.with_settings(found.config or found.metadata, name)
    prefix = f"{family.second}."
    second = {key[len(prefix) :]: weights.pop(key) for key in list(weights) if key.startswith(prefix)}
    check_floating(second, name)
    check_finite(second, name)  # of the others core reads tens of GB later, and may want them quantised
    patcher = core_model(weights, name, dtype, disable_dynamic)
    add_twin(patcher, family, second, name)
    if family.shift is not None:
        shift = number_in(found.scheduler or {}, "shift", family.shift, (0.01, 100.0), name)
        patcher.model.model_sampling.set_parameters(shift=shift)
    return with_second_time(patcher, family, name)


def in_core_keys(weights: Weights, family: SecondTime, name: str) -> Weights:
    """Without prefix, and under core's names where they are diffusers'."""
    prefix = next(before for key in weights if (before := family.prefix_of(key)) is not None)
    bare = {key[len(prefix) :]: tensor for key, tensor in weights.items() if key.startswith(prefix)}
    if any(key.startswith(CAUSAL) for key in bare):
        raise UnsupportedModel(
            f"{name}: a causal AnyFlow (FAR), which draws a video in chunks that see those before; ComfyUI's "
            "Wan has no such memory. Expected a bidirectional one, such as AnyFlow-Wan2.1-T2V."
        )
    if any(key.startswith("condition_embedder.") for key in bare):
        return {wan_name(key): tensor for key, tensor in bare.items()}
    if Z_IMAGE_OF_DIFFUSERS in bare:
        return comfy.model_detection.convert_diffusers_mmdit(bare, "")
    return bare  # Qwen-Image has diffusers' names in core too


def wan_name(key: str) -> str:
    for pattern, name in WAN_NAMES:
        key = re.sub(pattern, name, key)
    return key


def core_model(weights: Weights, name: str, dtype: torch.dtype | None, disable_dynamic: bool) -> Any:
    """Core's MODEL of exactly these weights. Raises ConfigMismatch or UnsupportedModel."""
    given = set(weights)
    options = {} if dtype is None else {"dtype": dtype}
    try:
        patcher = comfy.sd.load_diffusion_model_state_dict(
            weights, model_options=options, disable_dynamic=disable_dynamic
        )
    except KeyError as error:  # what core reads the layout off
        raise incomplete(name, str(error).strip("'")) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ConfigMismatch(
            f"{name}: {str(error).splitlines()[-1].strip()} Expected the weights of one network; download "
            "it again."
        ) from error
    if patcher is None:
        raise UnsupportedModel(
            f"{name}: ComfyUI knows no network of these weights. Expected AnyFlow of Wan 2.1, or TwinFlow of "
            "Qwen-Image or Z-Image, complete."
        )
    for key, _ in patcher.model.diffusion_model.named_parameters():
        if key not in given:
            raise incomplete(name, key)
    return patcher


def incomplete(name: str, key: str) -> ConfigMismatch:
    return ConfigMismatch(
        f"{name}: {key} is missing from the weights. Expected a complete network; download it again."
    )


def add_twin(patcher: Any, family: SecondTime, weights: Weights, name: str) -> None:
    """Put the embedder of the second time, made as that of the first, into the network of a MODEL. Raises
    ConfigMismatch unless these are its weights, UnsupportedModel where the network has no such embedder.
    """
    network = patcher.model.diffusion_model
    first = dict(network.named_modules()).get(family.first)
    if first is None:
        raise UnsupportedModel(
            f"{name}: has tensors of {family.name} ({family.second}), but is a {type(network).__name__}. "
            "Expected AnyFlow of Wan 2.1, or TwinFlow of Qwen-Image or Z-Image."
        )
    twin = copy.deepcopy(first)
    expected = {key: tensor.shape for key, tensor in twin.state_dict().items()}
    for key in sorted(set(expected) ^ set(weights)):
        if key in expected:
            raise incomplete(name, f"{family.second}.{key}")
        raise ConfigMismatch(
            f"{name}: {family.second}.{key} is not part of this network. Expected a {family.name}; download "
            "it again."
        )
    for key, tensor in weights.items():
        if tensor.shape != expected[key]:
            raise ConfigMismatch(
                f"{name}: {family.second}.{key} has shape {list(tensor.shape)}, the network needs "
                f"{list(expected[key])}. Expected the weights of one network; download it again."
            )
    twin.load_state_dict(weights, assign=patcher.is_dynamic())
    network.add_module(family.second, twin.requires_grad_(False))
