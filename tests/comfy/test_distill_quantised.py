# SPDX-License-Identifier: GPL-3.0-or-later
"""Teachers whose weights are kept in fewer bits: the adapter is trained beside them, as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from dizzydiff.students.distill.job import Job
from dizzydiff.students.distill.plan import Plan
from dizzydiff.students.distill.run import Running, distill
from dizzydiff.students.student_model import student_of

from .test_distill import denoised, encode

CPU = torch.device("cpu")
FLUX = {
    "image_model": "flux",
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": 8,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}
LAYOUTS = {
    "fp8": ("float8_e4m3fn", "TensorCoreFP8E4M3Layout"),
    "int8": ("int8_tensorwise", "TensorWiseINT8Layout"),
}


def flux(
    weights: dict[str, Tensor] | None, quantised: bool, stored: torch.dtype = torch.float32, **changes: Any
) -> Any:
    """Core's Flux without a guidance input, with core's quantised layers or plain ones."""
    config = comfy.supported_models.FluxSchnell({**FLUX, **changes})
    config.quant_config = {"mixed_ops": True} if quantised else None
    config.set_inference_dtype(stored, torch.float32 if quantised or stored != torch.float32 else None)
    model = comfy.model_base.Flux(config, device=CPU)
    if weights is None:
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    else:
        missing, unexpected = model.diffusion_model.load_state_dict(weights, strict=False)
        assert not missing and not unexpected
    if not quantised:
        model.diffusion_model.to(stored)
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


def packed(weights: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """As a file of core's quantised models holds them: blocks packed, the rest as it is."""
    name, layout = LAYOUTS[kind]
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        layer = key.removesuffix(".weight")
        if key.endswith(".weight") and value.ndim == 2 and "blocks" in key:
            out |= QuantizedTensor.from_float(value, layout, scale="recalculate").state_dict(key)
            out[f"{layer}.comfy_quant"] = torch.tensor(
                list(json.dumps({"format": name}).encode()), dtype=torch.uint8
            )
        else:
            out[key] = value
    return out


def teacher(kind: str) -> Any:
    plain = flux(None, quantised=False).model.diffusion_model.state_dict()
    if kind == "fp8 weights":
        return flux(plain, quantised=False, stored=torch.float8_e4m3fn)
    if kind == "packed by another pack":
        model = flux(plain, quantised=False)
        for name, module in list(model.model.diffusion_model.named_modules()):
            if isinstance(module, nn.Linear) and "blocks" in name:
                module.weight = nn.Parameter(Packed(module.weight.detach()), requires_grad=False)
                module.__class__ = PackedLinear
        return model
    return flux(packed(plain, kind), quantised=True)


class Packed(Tensor):
    """As GGUF weights are kept: bytes, that say the shape of what they hold."""

    @staticmethod
    def __new__(cls, weight: Tensor) -> Packed:
        scale = weight.abs().amax(1, keepdim=True) / 127
        held = torch.cat(
            [(weight / scale).round().to(torch.int8).view(torch.uint8), scale.view(torch.uint8)], 1
        )
        one = held.as_subclass(cls)
        one.held_shape = weight.shape
        return one

    def detach(self) -> Packed:
        return self

    @property
    def shape(self) -> torch.Size:
        return self.held_shape


class PackedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        held = self.weight.as_subclass(Tensor)
        weight = held[:, :-4].view(torch.int8).float() * held[:, -4:].contiguous().view(torch.float32)
        return nn.functional.linear(x, weight.to(x), self.bias)


@pytest.mark.parametrize("kind", ["fp8 weights", "packed by another pack", *LAYOUTS])
def test_the_adapter_is_trained_beside_weights_of_any_kind(kind: str, tmp_path: Path) -> None:
    """It changes what the network answers, stays in fp32, and the weights stay as they were. The student of
    the file answers as the one in training did, though no weight could hold the sum.
    """
    model, noise = teacher(kind), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    before = denoised(model, encode(32)("red"), 0.7)
    seen: list[Tensor] = []

    def look(running: Running, progress: Any) -> None:
        if len(progress.losses) == running.training.total:
            with torch.no_grad():
                rows = torch.zeros(2).long(), torch.full((2,), 5.0)
                seen.append(running.student.student(noise * 0.7, torch.full((2,), 0.7), *rows))

    result = distill(
        Job(
            teacher=model,
            teacher_name=kind,
            prompts=["red", "green"],
            encode=encode(32),
            shape=(4, 8, 8),
            plan=Plan(updates=4, batch=2, rank=2, rate=0.05),
            path=tmp_path / "student.safetensors",
        ),
        look,
    )
    blocks = [layer for layer in result.adapter.layers if "_blocks" in layer]
    assert len(blocks) == 13 and {each.dtype for each in result.adapter.lora.values()} == {torch.float32}
    assert torch.equal(denoised(model, encode(32)("red"), 0.7), before)
    student = denoised(student_of(model, result.adapter, kind), encode(32)("red"), 0.7, guidance=5.0)
    assert (seen[0] - before).norm() > 0.05 * before.norm()
    assert (student - seen[0]).norm() < 1e-3 * (seen[0] - before).norm()
    assert torch.equal(denoised(model, encode(32)("red"), 0.7), before), "the student is a copy"
