# SPDX-License-Identifier: GPL-3.0-or-later
"""What a UNet is made of, read off the shapes of its weights and checked against its config.

torch only; everything is a plain value that ``loader`` hands to ComfyUI's own classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch

from .errors import ConfigMismatch, NoGuidanceInput, UnsupportedModel, WrongGuidanceShape
from .files import Config, Weights, check_finite, check_floating

GUIDANCE_KEY = "time_embedding.cond_proj.weight"
"""Of C, diffusers' name."""
PREFIXES = ("", "unet.", "model.diffusion_model.", "diffusion_model.", "module.", "module.unet.")
FIRST_CONVOLUTIONS = ("conv_in.weight", "input_blocks.0.0.weight")
PREDICTION_MARKS = ("v_pred", "ztsnr")
"""Empty tensors by which Stable Diffusion checkpoints say how they were trained."""

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
class UNet:
    """weights: in the file's own keys, without prefix. marks: of its prediction. arguments: of core's
    UNetModel. guidance_width: columns of C, or None.
    """

    weights: Weights
    marks: frozenset[str]
    arguments: dict[str, Any]
    guidance_width: int | None


def read_unet(weights: Weights, config: Config | None, name: str, needs_guidance: bool = False) -> UNet:
    """The UNet among the tensors of a file, or of a folder with its config. Raises StudentError where it is
    broken, contradicts its config, is of a kind that core's UNetModel cannot be, or takes no guidance.
    """
    found = unet_weights(weights, name)
    width = guidance_width(found, name)
    if width is None and needs_guidance:
        raise NoGuidanceInput(
            f"{name}: this network has no guidance input ({GUIDANCE_KEY} is missing). Expected a student. "
            "Use Load Checkpoint or Load Diffusion Model for a file, Load Student Pipeline for a folder."
        )
    marks = frozenset(key for key in PREDICTION_MARKS if found.pop(key, None) is not None)
    arguments = read_layout(found, name)
    if config is not None:
        check_config(config, arguments, width, name)
    arguments.update(read_heads(arguments, config, name))
    check_floating(found, name)
    check_finite(found, name)
    return UNet(found, marks, arguments, width)


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
    """Columns of C after checking its shape, or None for a network without a guidance input.

    Raises WrongGuidanceShape.
    """
    projection = weights.get(GUIDANCE_KEY)
    if projection is None:
        return None
    first = next(key for key in FIRST_CONVOLUTIONS if key in weights)
    channels = _tensor(weights, first, name).shape[0]
    if projection.ndim != 2 or projection.shape[0] != channels:
        raise WrongGuidanceShape(
            f"{name}: {GUIDANCE_KEY} has shape {list(projection.shape)}; expected [{channels}, 256, 512 or "
            f"1024], since the first convolution has {channels} channels. The file is damaged or mixed."
        )
    return projection.shape[1]


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


def _tensor(weights: Weights, key: str, name: str, ndim: int = 4) -> torch.Tensor:
    """Raises ConfigMismatch unless it is there, with so many dimensions."""
    if key not in weights:
        raise ConfigMismatch(
            f"{name}: {key} is missing from the weights. Expected a complete UNet; download it again."
        )
    if weights[key].ndim != ndim:
        raise ConfigMismatch(
            f"{name}: {key} has shape {list(weights[key].shape)}; expected {ndim} dimensions. The file is "
            "damaged or mixed: download it again."
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
            "than down on every level."
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
        key = next((key for key in weights if key.endswith(endings)), None)
        return None if key is None else _tensor(weights, key, name, 2)

    diffusers = "conv_in.weight" in weights
    blocks = _diffusers_blocks(weights, name) if diffusers else _core_blocks(weights, name)
    conv_in = _tensor(weights, FIRST_CONVOLUTIONS[0 if diffusers else 1], name)
    conv_out = _tensor(weights, "conv_out.weight" if diffusers else "out.2.weight", name)
    proj_in = next((tensor for key, tensor in weights.items() if key.endswith("proj_in.weight")), None)
    context = first("attn2.to_k.weight")
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
    given = heads if isinstance(heads, list | tuple) else [heads] * len(channels)
    if len(given) == len(channels) and all(type(n) is int and 0 < n <= min(channels) for n in given):
        if len(set(given)) == 1:
            return {"num_heads": given[0], "num_head_channels": -1}
        widths = {c // h for c, h in zip(channels, given, strict=True)}
        if len(widths) == 1:
            return {"num_heads": -1, "num_head_channels": widths.pop()}
    raise UnsupportedModel(
        f"{name}: attention_head_dim {str(heads)[:40]} for channels {channels}; ComfyUI's UNet needs the "
        "same number of heads, or heads of the same width, on every level."
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
                f"{name}: config.json says {key} = {config[key]!r}, the weights have {value!r}. Expected a "
                "config and weights from the same model; download both again."
            )
