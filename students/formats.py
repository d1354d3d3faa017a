# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading students from disk: safetensors files, diffusers folders, the layout of a UNet, the noise schedule.

torch only; everything is a plain value that ``loader`` hands to ComfyUI's own classes.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from .errors import (
    ConfigMismatch,
    DamagedFile,
    MissingFile,
    NoGuidanceInput,
    NotFinite,
    NotSafetensors,
    OutsideModelsFolder,
    UnsupportedModel,
    WrongGuidanceShape,
)

Weights = dict[str, torch.Tensor]
Config = Mapping[str, Any]

GUIDANCE_KEY = "time_embedding.cond_proj.weight"
PREFIXES = ("", "unet.", "model.diffusion_model.")
FIRST_CONVOLUTIONS = ("conv_in.weight", "input_blocks.0.0.weight")
CORE_GUIDANCE = re.compile(r"(^|\.)(guidance_in|time_text_embed\.guidance_embedder|time_guidance_embed)\.")
SANA_SPRINT = re.compile(r"(^|\.)(cfg_embedder|time_embed\.guidance_embedder)\.")
PREDICTION_MARKS = ("v_pred", "ztsnr")
"""Empty tensors by which Stable Diffusion checkpoints say how they were trained."""
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

# What ComfyUI's UNetModel computes; a config that says otherwise needs another network.
FIXED_SETTINGS: Config = {
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "resnet_time_scale_shift": "default",
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "time_embedding_type": "positional",
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "resnet_skip_time_act": False,
    "attention_type": "default",
    "encoder_hid_dim_type": None,
    "timestep_post_act": None,
}


@dataclass(frozen=True)
class UNetFolder:
    """A diffusers UNet folder and the configs that travel with it."""

    weights: tuple[Path, ...]
    config: Config
    scheduler: Config | None = None
    vae: Config | None = None


@dataclass(frozen=True)
class Schedule:
    """How a network was trained to denoise.

    prediction: "eps", "v", "x0" or "flow"; settings: core's ``sampling_settings``; trained_betas: [T] or
    None;
    lcm_steps: the K timesteps an LCM was distilled on, or None.
    """

    prediction: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    trained_betas: tuple[float, ...] | None = None
    lcm_steps: int | None = None


def inside(root: Path, name: str) -> Path:
    """root/name, refusing names that are absolute or climb out of root."""
    if not name or name.startswith(("/", "\\")) or ":" in name or ".." in re.split(r"[/\\]", name):
        raise OutsideModelsFolder(f"{name!r} is not a name inside {root}. Choose one from the list.")
    return root / name


def read_json(path: Path) -> Config:
    """A JSON object from ``path``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFile(f"{path}: not found. Restore the file or download the model again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{path}: not valid JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path}: expected a JSON object. Download it again.")
    return value


def read_optional_json(path: Path) -> Config | None:
    return read_json(path) if path.is_file() else None


def read_weights(paths: Iterable[Path]) -> tuple[Weights, dict[str, Any]]:
    """All tensors, memory-mapped, and the metadata (JSON values decoded) of one file or of a file's
    shards.
    """
    weights: Weights = {}
    metadata: dict[str, Any] = {}
    for path in paths:
        check_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata.update({key: _decoded(text) for key, text in (file.metadata() or {}).items()})
                weights.update({key: file.get_tensor(key) for key in file.keys()})
        except SafetensorError as error:
            raise DamagedFile(
                f"{path}: the file is truncated or damaged ({error}). Expected a complete .safetensors file; "
                "download it again and compare its size."
            ) from error
    return weights, metadata


def check_header(path: Path) -> None:
    """Refuse what is missing, a pickle, or no safetensors file, before anything reads it."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError as error:
        raise MissingFile(
            f"{path}: the file is not there any more. Restore it, or refresh the list and choose another."
        ) from error
    if start.startswith(PICKLE_STARTS) and start[8:9] != b"{":
        # Advice to the user, in words: the pack itself opens no pickle.
        raise NotSafetensors(
            f"{path}: this is a pickle, which can run any code when opened. Expected .safetensors: convert "
            f"it "
            "with safetensors.torch.save_file(torch.load(file, weights_only=True), new_file) where you "
            "trust it."
        )
    if len(start) < 9:
        raise DamagedFile(f"{path}: the file is truncated or empty ({len(start)} bytes). Download it again.")
    if start[8:9] != b"{":
        raise NotSafetensors(f"{path}: not a safetensors file. Expected a UNet in .safetensors format.")


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def check_finite(weights: Weights, name: str) -> None:
    """Raise NotFinite for NaN or infinity; sums tensor by tensor, so a mapped file is read but not copied."""
    for key, tensor in weights.items():
        if tensor.is_floating_point():
            total = (tensor.float() if tensor.element_size() == 1 else tensor).sum(dtype=torch.float32)
            if not torch.isfinite(total):
                raise NotFinite(
                    f"{name}: {key} contains NaN or infinity. Expected finite weights: "
                    "the file is broken or its training diverged; get another copy."
                )


def is_unet_config(path: Path) -> bool:
    """Whether ``path`` is the config.json of a UNet2DConditionModel; unreadable ones are not."""
    try:
        return read_json(path).get("_class_name") == "UNet2DConditionModel"
    except (MissingFile, DamagedFile):
        return False


def takes_guidance(config: Path) -> bool:
    """Whether a readable config.json of a UNet asks for a guidance input."""
    return bool(read_json(config).get("time_cond_proj_dim"))


def weight_files(folder: Path, stem: str = "diffusion_pytorch_model") -> tuple[Path, ...]:
    """The weights of a diffusers sub-model: full precision, else fp16, else shards."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return (folder / name,)
    shards = tuple(sorted(folder.glob(f"{stem}-*-of-*.safetensors")))
    if shards:
        return shards
    if list(folder.glob("*.bin")):
        raise NotSafetensors(
            f"{folder}: holds only pickles (.bin). Expected {stem}.safetensors: save the model again with "
            "safe_serialization=True."
        )
    raise MissingFile(
        f"{folder}: {stem}.safetensors not found. Download the folder again, with all its files."
    )


def read_unet_folder(folder: Path) -> UNetFolder:
    """``folder`` is a UNet's own folder; scheduler and vae are looked for beside it."""
    return UNetFolder(
        weights=weight_files(folder),
        config=read_json(folder / "config.json"),
        scheduler=read_optional_json(folder.parent / "scheduler" / "scheduler_config.json"),
        vae=read_optional_json(folder.parent / "vae" / "config.json"),
    )


def refuse_unsupported_family(keys: Iterable[str], name: str) -> None:
    if any(SANA_SPRINT.search(key) for key in keys):
        raise UnsupportedModel(
            f"{name}: SANA-Sprint is not supported by your ComfyUI, which has no SANA network. "
            "Expected a UNet student (LCM, cfg-distill), Flux or HunyuanVideo/Image."
        )


def understood_by_core(keys: Iterable[str]) -> bool:
    """Whether ComfyUI itself feeds the guidance to this network (Flux, HunyuanVideo, HunyuanImage)."""
    return any(CORE_GUIDANCE.search(key) for key in keys)


def unet_weights(weights: Weights, name: str) -> Weights:
    """The UNet's tensors without their prefix ("", "unet." or "model.diffusion_model."), and a checkpoint's
    prediction marks.
    """
    for prefix in PREFIXES:
        if any(prefix + key in weights for key in FIRST_CONVOLUTIONS):
            marks = {key: weights[key] for key in PREDICTION_MARKS if key in weights}
            return {
                key[len(prefix) :]: tensor for key, tensor in weights.items() if key.startswith(prefix)
            } | marks
    raise UnsupportedModel(
        f"{name}: no UNet found. Expected the keys of a diffusers or Stable Diffusion UNet; for other models "
        "use ComfyUI's Load Diffusion Model."
    )


def guidance_width(weights: Weights, name: str) -> int | None:
    """Columns of C after checking its shape, or None for a network without a guidance input."""
    projection = weights.get(GUIDANCE_KEY)
    if projection is None:
        return None
    channels = next(weights[key] for key in FIRST_CONVOLUTIONS if key in weights).shape[0]
    if projection.ndim != 2 or projection.shape[0] != channels:
        raise WrongGuidanceShape(
            f"{name}: {GUIDANCE_KEY} has shape {list(projection.shape)}; expected [{channels}, 256, 512 or "
            f"1024], since the first convolution has {channels} channels. The file is damaged or mixed."
        )
    return projection.shape[1]


def no_guidance_input(name: str) -> NoGuidanceInput:
    return NoGuidanceInput(
        f"{name}: this network has no guidance input ({GUIDANCE_KEY} is missing). Expected a "
        "guidance-distilled student. Use Load Checkpoint or Load Diffusion Model for a file, "
        "Load Student Pipeline for a diffusers folder."
    )


class WidthRatio(Fraction):
    """A level's channels over the first level's, for core's ``mult * model_channels``: the product is a whole
    number.
    """

    def __mul__(self, channels: int) -> int:  # type: ignore[override]
        return int(Fraction(self) * channels)

    __rmul__ = __mul__  # type: ignore[assignment]


def _count(weights: Weights, pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... start a key."""
    n = 0
    while any(key.startswith(pattern.format(n)) for key in weights):
        n += 1
    return n


def _tensor(weights: Weights, key: str, name: str) -> torch.Tensor:
    if key not in weights:
        raise ConfigMismatch(
            f"{name}: {key} is missing from the weights. Expected a complete UNet; download it again."
        )
    return weights[key]


class Blocks(NamedTuple):
    """A UNet's residual blocks by level, and how many transformer blocks follow each, in forward order."""

    resnets: list[int]
    channels: list[int]
    down_depths: list[int]
    middle_depth: int
    """-1: one residual block alone; -2: no middle, as core's UNetModel counts."""
    up_depths: list[int]


def _diffusers_blocks(weights: Weights, name: str) -> Blocks:
    def depths(block: str, resnets: int) -> list[int]:
        return [_count(weights, f"{block}.attentions.{i}.transformer_blocks.{{}}.") for i in range(resnets)]

    levels = _count(weights, "down_blocks.{}.")
    down, up = ([f"{side}_blocks.{i}" for i in range(levels)] for side in ("down", "up"))
    resnets, up_resnets = (
        [_count(weights, f"{block}.resnets.{{}}.") for block in side] for side in (down, up)
    )
    if not levels or up_resnets != [n + 1 for n in reversed(resnets)]:
        raise UnsupportedModel(
            f"{name}: {resnets} residual blocks down and {up_resnets} up; ComfyUI's UNet needs one more up "
            f"than "
            "down on every level."
        )
    middle = _count(weights, "mid_block.resnets.{}.")
    return Blocks(
        resnets,
        [_tensor(weights, f"{block}.resnets.0.conv2.weight", name).shape[0] for block in down],
        [d for block, n in zip(down, resnets, strict=True) for d in depths(block, n)],
        depths("mid_block", 1)[0] if middle == 2 else middle - 2,
        [d for block, n in zip(up, up_resnets, strict=True) for d in depths(block, n)],
    )


def _core_blocks(weights: Weights, name: str) -> Blocks:
    resnets, channels, depths = [0], [0], []
    for n in range(1, _count(weights, "input_blocks.{}.")):
        if f"input_blocks.{n}.0.op.weight" in weights:
            resnets.append(0)
            channels.append(0)
            continue
        resnets[-1] += 1
        channels[-1] = _tensor(weights, f"input_blocks.{n}.0.out_layers.3.weight", name).shape[0]
        depths.append(_count(weights, f"input_blocks.{n}.1.transformer_blocks.{{}}."))
    middle = _count(weights, "middle_block.{}.")
    return Blocks(
        resnets,
        channels,
        depths,
        _count(weights, "middle_block.1.transformer_blocks.{}.") if middle == 3 else middle - 2,
        [
            _count(weights, f"output_blocks.{n}.1.transformer_blocks.{{}}.")
            for n in range(_count(weights, "output_blocks.{}."))
        ],
    )


def read_layout(weights: Weights, name: str) -> dict[str, Any]:
    """The arguments of core's UNetModel, all but the heads, read off the shapes of diffusers or Stable
    Diffusion keys.
    """

    def first(*endings: str) -> torch.Tensor | None:
        return next((tensor for key, tensor in weights.items() if key.endswith(endings)), None)

    diffusers = "conv_in.weight" in weights
    blocks = _diffusers_blocks(weights, name) if diffusers else _core_blocks(weights, name)
    conv_in = _tensor(weights, FIRST_CONVOLUTIONS[0 if diffusers else 1], name)
    conv_out = _tensor(weights, "conv_out.weight" if diffusers else "out.2.weight", name)
    proj_in, context = first("proj_in.weight"), first("attn2.to_k.weight")
    labels = first("add_embedding.linear_1.weight", "class_embedding.linear_1.weight", "label_emb.0.0.weight")
    ratios = [WidthRatio(c, conv_in.shape[0]) for c in blocks.channels]
    return {
        "image_size": 32,
        "use_checkpoint": False,
        "legacy": False,
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "in_channels": conv_in.shape[1],
        "out_channels": conv_out.shape[0],
        "model_channels": conv_in.shape[0],
        "channel_mult": [int(r) if r.denominator == 1 else r for r in ratios],
        "num_res_blocks": blocks.resnets,
        "transformer_depth": blocks.down_depths,
        "transformer_depth_middle": blocks.middle_depth,
        "transformer_depth_output": blocks.up_depths[::-1],  # core pops from its end
        "context_dim": None if context is None else context.shape[1],
        "use_linear_in_transformer": proj_in is not None and proj_in.ndim == 2,
        "adm_in_channels": None if labels is None else labels.shape[1],
        **({} if labels is None else {"num_classes": "sequential"}),
    }


def read_heads(layout: Config, config: Config | None, name: str) -> dict[str, int]:
    """``num_heads`` and ``num_head_channels`` (one of them -1).

    They cannot be read off the weights. A config says them (diffusers' ``attention_head_dim`` is a number of
    heads); without one, linear projections mean heads of 64 channels (SD2, SDXL), convolutions eight heads
    (SD1).
    """
    if config is None:
        return (
            {"num_heads": -1, "num_head_channels": 64}
            if layout["use_linear_in_transformer"]
            else {"num_heads": 8, "num_head_channels": -1}
        )
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    channels = [int(m * layout["model_channels"]) for m in layout["channel_mult"]]
    if isinstance(heads, int):
        return {"num_heads": heads, "num_head_channels": -1}
    if len(heads) == len(channels):
        if len(set(heads)) == 1:
            return {"num_heads": heads[0], "num_head_channels": -1}
        widths = {c // h for c, h in zip(channels, heads, strict=True)}
        if len(widths) == 1:
            return {"num_heads": -1, "num_head_channels": widths.pop()}
    raise UnsupportedModel(
        f"{name}: attention_head_dim {heads} for channels {channels}; ComfyUI's UNet needs the same number "
        f"of "
        "heads, or heads of the same width, on every level."
    )


def check_config(config: Config, layout: Config, width: int | None, name: str) -> None:
    """Raise unless the config describes these weights, and a network that ComfyUI's UNet can be."""
    for key, needed in FIXED_SETTINGS.items():
        if config.get(key, needed) != needed:
            raise UnsupportedModel(
                f"{name}: config.json has {key} = {config[key]!r}; ComfyUI's UNet only has {needed!r}."
            )
    layers = config.get("layers_per_block", layout["num_res_blocks"])
    found = {
        "in_channels": layout["in_channels"],
        "out_channels": layout["out_channels"],
        "block_out_channels": [int(m * layout["model_channels"]) for m in layout["channel_mult"]],
        "layers_per_block": [layers]
        if isinstance(layers, int) and set(layout["num_res_blocks"]) == {layers}
        else layout["num_res_blocks"],
        "cross_attention_dim": layout["context_dim"],
        "time_cond_proj_dim": width,
    }
    for key, value in found.items():
        said = config.get(key, value)
        said = [said] if key == "layers_per_block" and isinstance(said, int) else said
        if (list(said) if isinstance(said, list | tuple) else said) != value:
            raise ConfigMismatch(
                f"{name}: config.json says {key} = {config[key]!r}, the weights have {value!r}. "
                "Expected a config and weights from the same model; download both again."
            )


def read_schedule(config: Config | None, name: str) -> Schedule:
    """A diffusers scheduler config (or a file's metadata) in core's terms; unset keys take diffusers'
    defaults.
    """
    if not config or not {"_class_name", "prediction_type", "beta_schedule"} & set(config):
        return Schedule(prediction=None)
    if "FlowMatch" in config.get("_class_name", "") or config.get("prediction_type") == "flow_prediction":
        return Schedule(
            "flow", {"shift": float(config.get("shift", config.get("flow_shift", 1.0))), "multiplier": 1000}
        )
    predictions = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    beta_schedules = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}
    prediction = config.get("prediction_type", "epsilon")
    lcm = config.get("_class_name") == "LCMScheduler"
    beta_schedule = config.get("beta_schedule", "scaled_linear" if lcm else "linear")
    if prediction not in predictions or beta_schedule not in beta_schedules:
        raise UnsupportedModel(
            f"{name}: scheduler with prediction_type {prediction!r} and beta_schedule {beta_schedule!r}; "
            f"expected one of {sorted(predictions)} and one of {sorted(beta_schedules)}."
        )
    betas = config.get("trained_betas")
    settings = {
        "beta_schedule": beta_schedules[beta_schedule],
        "timesteps": int(config.get("num_train_timesteps", 1000)),
        "linear_start": float(config.get("beta_start", 0.00085 if lcm else 0.0001)),
        "linear_end": float(config.get("beta_end", 0.012 if lcm else 0.02)),
        "zsnr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    return Schedule(
        predictions[prediction],
        settings,
        tuple(betas) if betas else None,
        int(config.get("original_inference_steps", 50)) if lcm else None,
    )
