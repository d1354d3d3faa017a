# SPDX-License-Identifier: GPL-3.0-or-later
"""A file or folder of weights as a native MODEL, in ComfyUI's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_base import SDXL, BaseModel, ModelType

from . import files
from .adapter import needs_teacher
from .core_families import load_core_family, load_second_time, with_second_time
from .errors import ConfigMismatch, NeedsTeacher, UnsupportedModel
from .files import Checkpoint, Config, Weights
from .guidance import Applied, family_elsewhere, guidance_input
from .layout import GUIDANCE_KEY, UNet, read_unet
from .networks import GuidedModel, GuidedSDXL
from .schedule import Schedule, schedule_of
from .second_time import second_time

WEIGHT_DTYPES: Mapping[str, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
MODEL_TYPES = {"eps": ModelType.EPS, "v": ModelType.V_PREDICTION, "x0": ModelType.EPS, "flow": ModelType.FLOW}


@dataclass(frozen=True)
class Source:
    """Where a UNet is loaded from: one file, or a diffusers UNet folder. Cheap to keep, enough to load
    again.
    """

    path: Path
    name: str
    weight_dtype: str = "default"


def load_student(source: Source, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """A guided student as MODEL. Raises StudentError for anything wrong with what the user chose."""
    return _load(source, disable_dynamic, needs_guidance=True)


def load_unet(source: Source, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """A student, or a plain UNet (a teacher), as MODEL."""
    return _load(source, disable_dynamic, needs_guidance=False)


def _load(source: Source, disable_dynamic: bool, needs_guidance: bool) -> comfy.model_patcher.ModelPatcher:
    found = files.read_checkpoint(source.path)
    if needs_teacher(found.metadata):
        teacher = found.metadata.get("teacher_name", "another model")
        raise NeedsTeacher(
            f"{source.name}: distilled from {teacher}, and kept as an adapter of it. Expected that model as "
            "well: connect it to the input teacher of Load Guided Student."
        )
    dtype, elsewhere = WEIGHT_DTYPES[source.weight_dtype], family_elsewhere(found.weights)
    if elsewhere is not None and elsewhere.applied is Applied.NOWHERE:
        raise UnsupportedModel(
            f"{source.name}: {elsewhere.name} is not supported by your ComfyUI, which has no such "
            "network. Expected a UNet student (LCM, cfg-distill), Flux or HunyuanVideo/Image."
        )
    second = second_time(found.weights)
    recipe = (load_student if needs_guidance else load_unet, (source,))
    if second is not None and second.made:
        patcher = load_second_time(found, second, source.name, dtype, disable_dynamic)
        patcher.cached_patcher_init = recipe
        return patcher
    if elsewhere is not None or second is not None:
        patcher = load_core_family(source.path, source.name, dtype, disable_dynamic)
        return patcher if second is None else with_second_time(patcher, second, source.name)
    unet = read_unet(found.weights, found.config, source.name, needs_guidance)
    model_config, weights = describe(unet, found, source.name)
    patcher = build(model_config, weights, dtype, disable_dynamic)
    patcher.cached_patcher_init = recipe
    return patcher


def describe(unet: UNet, found: Checkpoint, name: str) -> tuple[Any, Weights]:
    """Core's model config (with ``guidance``, ``schedule`` and ``name``) and the weights in core's keys."""
    weights = in_core_keys(unet, name)
    model_config = model_config_of(unet, found.config)
    model_config.name = name
    model_config.guidance = None
    if unet.guidance_width is not None:
        model_config.guidance = guidance_input(unet.guidance_width, found.config or found.metadata, name)
    detected_v = model_config.model_type(weights) == ModelType.V_PREDICTION
    model_config.schedule = schedule_of(found, model_config.guidance, unet.marks, detected_v, name)
    model_config.sampling_settings.update(model_config.schedule.settings)
    if found.vae is not None:
        model_config.latent_format = latent_format(found.vae, f"{name}, vae/config.json")
    return model_config, weights


def in_core_keys(unet: UNet, name: str) -> Weights:
    """diffusers' keys renamed to core's; core's as they are. Raises UnsupportedModel for unknown tensors."""
    if "conv_in.weight" not in unet.weights:
        return unet.weights
    names = {**comfy.utils.unet_to_diffusers(unet.arguments), GUIDANCE_KEY: GUIDANCE_KEY}
    unknown = sorted(set(unet.weights) - set(names))
    if unknown:
        raise UnsupportedModel(
            f"{name}: {len(unknown)} tensors that ComfyUI's UNet has no place for, such as {unknown[0]}. "
            "Expected a UNet2DConditionModel of Stable Diffusion's kind."
        )
    return {names[key]: tensor for key, tensor in unet.weights.items()}


def model_config_of(unet: UNet, config: Config | None) -> Any:
    """Core's config of the Stable Diffusion that a layout is of."""
    family: type = comfy.supported_models.SD15
    if unet.arguments["adm_in_channels"] is not None:
        family = comfy.supported_models.SDXL
    elif unet.arguments["use_linear_in_transformer"]:
        family = comfy.supported_models.SD20
    model_config = family(unet.arguments)
    model_config.unet_config.update(unet.arguments)
    if config is not None and not config.get("upcast_attention", False):
        model_config.unet_config.pop("attn_precision", None)
    return model_config


def latent_format(vae: Config, name: str) -> comfy.latent_formats.LatentFormat:
    """Core's format of this VAE's scale; a plain one for a VAE core does not know, with the config's preview
    factors if any. Raises ConfigMismatch.
    """
    scale = files.number_in(vae, "scaling_factor", 0.18215, (1e-6, 1e6), name)
    known = {0.18215: comfy.latent_formats.SD15, 0.13025: comfy.latent_formats.SDXL}
    if scale in known and "latent_rgb_factors" not in vae:
        return known[scale]()
    plain = comfy.latent_formats.LatentFormat()
    plain.scale_factor = scale
    plain.latent_channels = int(files.number_in(vae, "latent_channels", 4, (1, 1024), name))
    plain.latent_rgb_factors = vae.get("latent_rgb_factors")
    plain.latent_rgb_factors_bias = vae.get("latent_rgb_bias")
    return plain


def model_sampling(model_config: Any) -> torch.nn.Module:
    """Sigmas and parameterisation of the schedule, made of core's classes."""
    schedule: Schedule = model_config.schedule
    sampling = comfy.model_sampling
    kinds = {"eps": sampling.EPS, "v": sampling.V_PREDICTION, "x0": sampling.X0, "flow": sampling.CONST}
    steps: type = (
        sampling.ModelSamplingDiscreteFlow
        if schedule.prediction == "flow"
        else sampling.ModelSamplingDiscrete
    )
    kind: type = kinds[schedule.prediction]
    attributes = {}
    if schedule.lcm_steps is not None:
        # Here and not above: it imports ComfyUI's top-level ``nodes``, which must be loaded by then.
        from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled

        steps, attributes = ModelSamplingDiscreteDistilled, {"original_timesteps": schedule.lcm_steps}
        kind = LCM if schedule.prediction == "eps" else kind
    result = type("ModelSampling", (steps, kind), attributes)(model_config)
    if schedule.trained_betas is not None:
        result._register_schedule(given_betas=torch.tensor(schedule.trained_betas, dtype=torch.float64))
    return result


def storage_dtype(weights: Weights, asked: torch.dtype | None) -> torch.dtype:
    """The dtype weights are kept in: as asked, else core's, but never wider than the file, which stays
    mapped.
    """
    if asked is not None:
        return asked
    in_file = comfy.utils.weight_dtype(weights)
    chosen = comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights), weight_dtype=in_file
    )
    return in_file if in_file is not None and in_file.itemsize < chosen.itemsize else chosen


def build(
    model_config: Any, weights: Weights, dtype: torch.dtype | None, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """The model around the weights, which are assigned, not copied: a file of the right dtype stays
    mapped.
    """
    management = comfy.model_management
    device, offload = management.get_torch_device(), management.unet_offload_device()
    stored = storage_dtype(weights, dtype)
    compute = management.unet_manual_cast(stored, device, model_config.supported_inference_dtypes)
    if compute is None and any(t.dtype != stored for t in weights.values()):
        weights = {key: t.to(stored) for key, t in weights.items()}
    elif dtype is not None:
        weights = {key: t.to(dtype) for key, t in weights.items()}
    model_config.set_inference_dtype(stored, compute, device=device)
    model = empty_model(model_config)
    check_shapes(model.diffusion_model, weights, model_config.name)
    model.diffusion_model.load_state_dict(weights, assign=True)
    model.requires_grad_(False)
    model.device = offload
    if not management.is_device_cpu(offload):
        model.to(offload)
    model.model_sampling = model_sampling(model_config)
    if model_config.inpaint_model():
        model.set_inpaint()
    dynamic, plain = comfy.model_patcher.CoreModelPatcher, comfy.model_patcher.ModelPatcher
    return (plain if disable_dynamic else dynamic)(model, load_device=device, offload_device=offload)


def empty_model(model_config: Any) -> BaseModel:
    """On the meta device: no memory is taken before the weights are known to fit."""
    guided = model_config.guidance is not None
    if model_config.unet_config["adm_in_channels"] is not None:
        kind: type = GuidedSDXL if guided else SDXL
    else:
        kind = GuidedModel if guided else BaseModel
    return kind(
        model_config, model_type=MODEL_TYPES[model_config.schedule.prediction], device=torch.device("meta")
    )


def check_shapes(network: torch.nn.Module, weights: Weights, name: str) -> None:
    """Raise ConfigMismatch unless the weights are exactly the network's."""
    expected = network.state_dict()
    for key in sorted(set(expected) ^ set(weights)):
        raise ConfigMismatch(
            f"{name}: {key} is "
            f"{'missing from the weights' if key in expected else 'not part of this network'}. Expected a "
            "complete UNet; download it again."
        )
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise ConfigMismatch(
                f"{name}: {key} has shape {list(tensor.shape)}, the network needs "
                f"{list(expected[key].shape)}. Expected a config and weights from the same model; download "
                "both again."
            )
