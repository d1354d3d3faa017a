# SPDX-License-Identifier: GPL-3.0-or-later
"""Guided students as native ComfyUI models: core's UNet with one more input.

The only module of this feature that imports ComfyUI's model classes, with ``pipeline`` for text encoders and
VAEs.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_base import SDXL, BaseModel, ModelType
from comfy.patcher_extension import WrappersMP

from . import formats
from .distill.adapter import is_adapter, is_several
from .errors import ConfigMismatch, NeedsTeacher, UnsupportedModel
from .formats import Config, Schedule, UNetFolder, Weights
from .guidance import GuidanceInput, guidance_embedding, guidance_input, scales_tensor
from .sampler import flow_signal, sample_student, unit_signal

WEIGHT_DTYPES: Mapping[str, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
MODEL_TYPES = {"eps": ModelType.EPS, "v": ModelType.V_PREDICTION, "x0": ModelType.EPS, "flow": ModelType.FLOW}


class GuidedUNet(UNetModel):
    """Core's UNet with emb = linear_2(silu(linear_1(t_emb + C e(w)))): Meng et al. 2023, in the form of LCM
    and diffusers.

    C keeps its diffusers key, ``time_embedding.cond_proj.weight``, so that saved checkpoints load again as
    students.
    """

    def __init__(
        self,
        *args: Any,
        guidance: GuidanceInput,
        operations: Any,
        device: torch.device | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, operations=operations, device=device, **kwargs)
        self.guidance = guidance
        self.time_embedding = torch.nn.ModuleDict(
            {
                "cond_proj": operations.Linear(
                    guidance.width, self.model_channels, bias=False, dtype=self.dtype, device=device
                )
            }
        )

    def guided_embedding(
        self, timesteps: torch.Tensor, milliweights: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """[B] times and [B] or [B, 2] of 1000 w -> [B, 4 model_channels]."""
        e = guidance_embedding(milliweights, self.guidance).to(dtype)
        t_emb = timestep_embedding(timesteps, self.model_channels).to(dtype)
        return self.time_embed(t_emb + self.time_embedding["cond_proj"](e))

    def _forward(
        self,
        x,
        timesteps=None,
        context=None,
        y=None,
        control=None,
        transformer_options=None,
        milliweights=None,
        **kwargs,
    ):
        """As UNetModel; milliweights: [B] or [B, 2] int64, 1000 w a row (default: the default guidance)."""
        if milliweights is None:
            default = self.guidance.milliweights(scales_tensor(None, self.guidance.default_scale))
            milliweights = default.to(x.device).expand(x.shape[0])
        emb = self.guided_embedding(timesteps, milliweights, x.dtype)
        transformer_options = transformer_options or {}
        patches = transformer_options.get("patches", {})
        guided = {**patches, "emb_patch": [lambda *_: emb, *patches.get("emb_patch", [])]}
        return super()._forward(
            x, timesteps, context, y, control, {**transformer_options, "patches": guided}, **kwargs
        )


class GuidedModel(BaseModel):
    """A BaseModel whose conditioning key ``guidance`` (g, or one g a row; ``guidance_2`` for a second signal)
    reaches the UNet.
    """

    def __init__(
        self, model_config: Any, model_type: ModelType = ModelType.EPS, device: torch.device | None = None
    ):
        self_guidance: GuidanceInput = model_config.guidance
        super().__init__(
            model_config,
            model_type,
            device=device,
            unet_model=functools.partial(GuidedUNet, guidance=self_guidance),
        )
        self.guidance = self_guidance

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        out = super().extra_conds(**kwargs)
        g = scales_tensor(kwargs.get("guidance"), self.guidance.default_scale)
        if self.guidance.signals == 2:
            second = kwargs.get("guidance_2")
            g = torch.stack([g, (g if second is None else scales_tensor(second, 0.0)).expand_as(g)], dim=1)
        self.guidance.warn_outside(g, self.model_config.name)
        out["milliweights"] = comfy.conds.CONDRegular(self.guidance.milliweights(g).to(kwargs["device"]))
        return out


class GuidedSDXL(SDXL, GuidedModel):
    """SDXL's pooled text and sizes; GuidedModel's guidance."""


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
    folder = formats.read_unet_folder(source.path) if source.path.is_dir() else None
    weights, metadata = formats.read_weights(folder.weights if folder else (source.path,))
    if is_adapter(metadata) or is_several(metadata):
        teacher = metadata.get("teacher_name", "another model")
        raise NeedsTeacher(
            f"{source.name}: distilled from {teacher}, and kept as an adapter of it. Expected that model as "
            f"well: connect "
            "it to the input teacher of Load Guided Student."
        )
    formats.refuse_unsupported_family(weights, source.name)
    dtype = WEIGHT_DTYPES[source.weight_dtype]
    if formats.understood_by_core(weights):
        return load_core_family(source, dtype, disable_dynamic)
    weights = formats.unet_weights(weights, source.name)
    width = formats.guidance_width(weights, source.name)
    if width is None and needs_guidance:
        raise formats.no_guidance_input(source.name)
    formats.check_finite(weights, source.name)
    model_config, weights = describe(weights, metadata, folder, width, source.name)
    patcher = build(model_config, weights, dtype, disable_dynamic)
    patcher.cached_patcher_init = (load_student if needs_guidance else load_unet, (source,))
    return patcher


def load_core_family(
    source: Source, dtype: torch.dtype | None, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """Flux, HunyuanVideo, HunyuanImage: core's loader and core's guidance, which gains one g a row."""
    if source.path.is_dir():
        raise UnsupportedModel(
            f"{source.name}: a diffusers folder of a transformer. Expected one .safetensors file of it, "
            f"under "
            "models/diffusion_models."
        )
    patcher = comfy.sd.load_diffusion_model(
        str(source.path),
        model_options={} if dtype is None else {"dtype": dtype},
        disable_dynamic=disable_dynamic,
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


def describe(
    weights: Weights, metadata: Config, folder: UNetFolder | None, width: int | None, name: str
) -> tuple[Any, Weights]:
    """Core's model config (with ``guidance``, ``schedule`` and ``name``) and the weights in core's keys."""
    config = folder.config if folder else None
    marks = {key: weights.pop(key) for key in formats.PREDICTION_MARKS if key in weights}
    layout = formats.read_layout(weights, name)
    if config is not None:
        formats.check_config(config, layout, width, name)
    if "conv_in.weight" in weights:
        names = {**comfy.utils.unet_to_diffusers(layout), formats.GUIDANCE_KEY: formats.GUIDANCE_KEY}
        unknown = sorted(set(weights) - set(names))
        if unknown:
            raise UnsupportedModel(
                f"{name}: {len(unknown)} tensors that ComfyUI's UNet has no place for, such as {unknown[0]}. "
                "Expected a UNet2DConditionModel of Stable Diffusion's kind."
            )
        weights = {names[key]: tensor for key, tensor in weights.items()}
    layout.update(formats.read_heads(layout, config, name))

    linear, labelled = layout["use_linear_in_transformer"], layout["adm_in_channels"] is not None
    family = (
        comfy.supported_models.SDXL
        if labelled
        else comfy.supported_models.SD20
        if linear
        else comfy.supported_models.SD15
    )
    model_config = family(layout)
    model_config.unet_config.update(layout)
    if config is not None and not config.get("upcast_attention", False):
        model_config.unet_config.pop("attn_precision", None)
    model_config.name = name
    model_config.guidance = None if width is None else guidance_input(width, config or metadata, name)
    model_config.schedule = _schedule(
        folder.scheduler if folder else metadata, model_config, {**weights, **marks}, name
    )
    model_config.sampling_settings.update(model_config.schedule.settings)
    if folder is not None and folder.vae is not None:
        model_config.latent_format = latent_format(folder.vae)
    return model_config, weights


def _schedule(config: Config | None, model_config: Any, weights: Weights, name: str) -> Schedule:
    """The schedule of the scheduler config; without one, LCM for 256-wide students, else what core detects in
    the weights.
    """
    schedule = formats.read_schedule(config, name)
    if schedule.prediction is not None:
        return schedule
    guidance: GuidanceInput | None = model_config.guidance
    declared = config is not None and "guidance_weight" in config
    if guidance is not None and guidance.width == 256 and not declared and "v_pred" not in weights:
        return Schedule("eps", lcm_steps=50)
    v = "v_pred" in weights or model_config.model_type(weights) == ModelType.V_PREDICTION
    return Schedule("v" if v else "eps", {"zsnr": "ztsnr" in weights})


def latent_format(vae: Config) -> comfy.latent_formats.LatentFormat:
    """Core's format of this VAE's scale; a plain one for a VAE core does not know, with the config's preview
    factors if any.
    """
    scale = float(vae.get("scaling_factor", 0.18215))
    known = {0.18215: comfy.latent_formats.SD15, 0.13025: comfy.latent_formats.SDXL}
    if scale in known and "latent_rgb_factors" not in vae:
        return known[scale]()
    plain = comfy.latent_formats.LatentFormat()
    plain.scale_factor = scale
    plain.latent_channels = int(vae.get("latent_channels", 4))
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
    kind: type = kinds[schedule.prediction or "eps"]
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
    """The dtype weights are kept in: as asked, else core's choice, but never wider than the file (which stays
    mapped).
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
    memory-mapped.
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
    model_class = {
        (True, True): GuidedSDXL,
        (True, False): GuidedModel,
        (False, True): SDXL,
        (False, False): BaseModel,
    }[model_config.guidance is not None, model_config.unet_config["adm_in_channels"] is not None]
    model = model_class(
        model_config, model_type=MODEL_TYPES[model_config.schedule.prediction], device=torch.device("meta")
    )
    check_shapes(model.diffusion_model, weights, model_config.name)
    model.diffusion_model.load_state_dict(weights, assign=True)
    model.requires_grad_(False)
    model.device = offload
    if not management.is_device_cpu(offload):
        model.to(offload)
    model.model_sampling = model_sampling(model_config)
    if model_config.inpaint_model():
        model.set_inpaint()
    patcher_class = (
        comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    )
    return patcher_class(model, load_device=device, offload_device=offload)


def check_shapes(network: torch.nn.Module, weights: Weights, name: str) -> None:
    """Raise ConfigMismatch unless the weights are exactly the network's."""
    expected = network.state_dict()
    for key in sorted(set(expected) ^ set(weights)):
        raise ConfigMismatch(
            f"{name}: {key} is "
            f"{'missing from the weights' if key in expected else 'not part of this network'}. "
            "Expected a complete UNet; download it again."
        )
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise ConfigMismatch(
                f"{name}: {key} has shape {list(tensor.shape)}, the network needs "
                f"{list(expected[key].shape)}. "
                "Expected a config and weights from the same model; download both again."
            )


def sample_student_native(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    eta: float = 1.0,
    noise_sampler: Any = None,
) -> torch.Tensor:
    """``sample_student`` as ComfyUI calls samplers: noise from the seed, alpha from the model."""
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    signal = flow_signal if isinstance(sampling, comfy.model_sampling.CONST) else unit_signal
    noise_sampler = noise_sampler or default_noise_sampler(x, seed=(extra_args or {}).get("seed"))
    return sample_student(
        model, x, sigmas, extra_args, callback, disable, eta=eta, noise_sampler=noise_sampler, signal=signal
    )
