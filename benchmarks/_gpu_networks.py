# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks of real sizes with random weights, built by ComfyUI's own classes: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "num_heads": 8,
    "adm_in_channels": None,
}
SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 5,
    "depth_single_blocks": 10,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
"""Flux.1's width at about a quarter of its 19 + 38 blocks."""
TOY_SD15 = {"model_channels": 64, "context_dim": 64}
TOY_SDXL = {
    **TOY_SD15,
    "transformer_depth": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
}
TOY_FLUX = {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "context_in_dim": 64}


@dataclass(frozen=True)
class Network:
    """A model as ComfyUI samples it, and conditioning of the shapes that it takes."""

    name: str
    patcher: Any
    channels: int
    positive: list
    negative: list
    raw: dict[str, Tensor]
    """What the network itself takes besides x, sigma and text, one row."""

    @property
    def context(self) -> Tensor:
        return self.positive[0][0].to(self.patcher.load_device)

    def latent(self, pixels: int, rows: int = 1) -> Tensor:
        return torch.randn(
            rows, self.channels, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(0)
        )


def networks(device: torch.device, toy: bool) -> dict[str, Callable[[], Network]]:
    """By name, made when called. ``toy``: the same layouts, small enough for a CPU."""
    sd15, sdxl, flux = (SD15 | TOY_SD15, SDXL | TOY_SDXL, FLUX | TOY_FLUX) if toy else (SD15, SDXL, FLUX)
    size = ", toy" if toy else ""
    return {
        "SD1.5": lambda: _unet("SD1.5" + size, sd15, device, student=False),
        "SD1.5 student": lambda: _unet("SD1.5 student" + size, sd15, device, student=True),
        "SDXL": lambda: _unet("SDXL" + size, sdxl, device, student=False),
        "SDXL student": lambda: _unet("SDXL student" + size, sdxl, device, student=True),
        "Flux": lambda: _flux("Flux, 5 + 10 blocks" if not toy else "Flux" + size, flux, device),
    }


def _unet(name: str, layout: dict[str, Any], device: torch.device, student: bool) -> Network:
    import comfy.model_base
    import comfy.supported_models

    from ..students.guidance import guidance_input
    from ..students.networks import GuidedModel, GuidedSDXL

    labelled = layout["adm_in_channels"] is not None
    config = (comfy.supported_models.SDXL if labelled else comfy.supported_models.SD15)(layout)
    config.unet_config.update(layout)
    classes = {
        (False, False): comfy.model_base.BaseModel,
        (False, True): comfy.model_base.SDXL,
        (True, False): GuidedModel,
        (True, True): GuidedSDXL,
    }
    config.guidance, config.name = guidance_input(256, {}, name), name
    raw = {"y": torch.randn(1, layout["adm_in_channels"])} if labelled else {}
    return _network(name, config, classes[student, labelled], device, layout["context_dim"], 77, 1280, raw)


def _flux(name: str, layout: dict[str, Any], device: torch.device) -> Network:
    import comfy.model_base
    import comfy.supported_models

    config = comfy.supported_models.Flux(layout)
    raw = {"y": torch.randn(1, layout["vec_in_dim"]), "guidance": torch.tensor([3.5])}
    return _network(
        name, config, comfy.model_base.Flux, device, layout["context_in_dim"], 256, layout["vec_in_dim"], raw
    )


def _network(
    name: str,
    config: Any,
    model_class: Any,
    device: torch.device,
    context: int,
    tokens: int,
    pooled: int,
    raw: dict[str, Tensor],
) -> Network:
    from comfy.model_patcher import ModelPatcher

    dtype = torch.float32 if device.type == "cpu" else config.supported_inference_dtypes[0]
    config.set_inference_dtype(dtype, None)
    model = model_class(config, device=device).requires_grad_(False).eval().to(device)
    torch.manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=(parameter.numel() / parameter.shape[0]) ** -0.5)
        else:
            parameter.fill_(0.5)
    text = [[torch.randn(1, tokens, context), {"pooled_output": torch.randn(1, pooled)}] for _ in range(2)]
    raw = {key: value.to(device) for key, value in raw.items()}
    return Network(
        name,
        ModelPatcher(model, device, device),
        config.latent_format.latent_channels,
        text[:1],
        text[1:],
        raw,
    )


def inside_sampler(
    network: Network, latent: Tensor, cfg: float, body: Callable[[Callable[[Tensor], Tensor], Tensor], None]
) -> None:
    """Call ``body(model, x)`` where a sampler would run; model(x) is a guided prediction at sigma 0.9."""
    import comfy.sample
    import comfy.samplers

    def function(
        inner: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool
    ) -> Tensor:
        body(lambda state: inner(state, sigmas[:1].expand(state.shape[0]), **extra_args), x)
        return x

    comfy.sample.sample_custom(
        network.patcher,
        latent,
        cfg,
        comfy.samplers.KSAMPLER(function),
        torch.tensor([0.9, 0.0]),
        network.positive,
        network.negative,
        torch.zeros_like(latent),
        disable_pbar=True,
    )
