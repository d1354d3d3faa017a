# SPDX-License-Identifier: GPL-3.0-or-later
"""Core's UNet and its MODEL with one more input, the guidance."""

from __future__ import annotations

import functools
from typing import Any

import comfy.conds
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_base import SDXL, BaseModel, ModelType

from .guidance import GuidanceInput, guidance_embedding, scales_tensor, signals_tensor


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
        guidance: GuidanceInput = model_config.guidance
        super().__init__(
            model_config,
            model_type,
            device=device,
            unet_model=functools.partial(GuidedUNet, guidance=guidance),
        )
        self.guidance = guidance

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        out = super().extra_conds(**kwargs)
        g = signals_tensor(kwargs.get("guidance"), kwargs.get("guidance_2"), self.guidance)
        self.guidance.warn_outside(g, self.model_config.name)
        out["milliweights"] = comfy.conds.CONDRegular(self.guidance.milliweights(g).to(kwargs["device"]))
        return out


class GuidedSDXL(SDXL, GuidedModel):
    """SDXL's pooled text and sizes; GuidedModel's guidance."""
