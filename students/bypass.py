# SPDX-License-Identifier: GPL-3.0-or-later
"""Core's LoRA beside weights that could not hold the sum of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.weight_adapter import LoRAAdapter
from comfy.weight_adapter.bypass import BypassInjectionManager
from torch import Tensor, nn

from .adapter import LAYERS

KEY = "dizzydiff_student"
HOLD_SUMS = (torch.float32, torch.bfloat16, torch.float16)


def holds_sums(weight: Any) -> bool:
    """Whether a weight is plain numbers of at least 16 bits. One in fp8 or int8 would round a small
    difference away, and of other packs' packed ones nothing is known.
    """
    return type(weight) in (Tensor, nn.Parameter) and weight.dtype in HOLD_SUMS


def add_loras(model: Any, loras: Mapping[str, LoRAAdapter]) -> None:
    """LoRAs of layers onto a MODEL: patches where weights can hold them, and in bypass mode elsewhere."""
    modules = dict(model.model.diffusion_model.named_modules())
    summed = {name for name in loras if holds_sums(modules[name.removeprefix(LAYERS)].weight)}
    model.add_patches({f"{name}.weight": loras[name] for name in loras if name in summed}, 1.0)
    manager = BypassInjectionManager()
    for name in loras:
        if name not in summed:
            manager.add_adapter(name, loras[name])
    if len(summed) < len(loras):
        model.set_injections(KEY, manager.create_injections(model.model))
