# SPDX-License-Identifier: GPL-3.0-or-later
"""One picture through ComfyUI's own SamplerCustomAdvanced, in this process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SEED = 7


class SeededNoise:
    """NOISE: core's, from a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        import comfy.sample

        return comfy.sample.prepare_noise(latent["samples"], self.seed, latent.get("batch_index"))


def cfg_guider(model: Any, positive: list, negative: list, cfg: float) -> Any:
    """GUIDER: core's CFGGuider."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def levels(model: Any, sampler_name: str, steps: int, scheduler: str = "simple") -> Tensor:
    """SIGMAS [steps + 1] as core's KSampler chooses them."""
    import comfy.samplers

    return comfy.samplers.KSampler(model, steps, model.load_device, sampler_name, scheduler, 1.0).sigmas


def draw(guider: Any, sampler: Any, sigmas: Tensor, latent: dict[str, Any], seed: int = SEED) -> list[Tensor]:
    """The parts of the latent that the sampler makes: one, or more where it is nested."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    noise = SeededNoise(seed)
    with torch.inference_mode():
        result = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, dict(latent)).result[0][
            "samples"
        ]
    return list(result.unbind()) if result.is_nested else [result]


def relative_rms(result: list[Tensor], reference: list[Tensor]) -> float:
    """RMS(result - reference) / RMS(reference) of the worst part. What is no number in both counts as equal;
    infinite where only one of them has such, or another shape.
    """
    return max(_relative_rms(a, b) for a, b in zip(result, reference, strict=True))


def _relative_rms(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    a, b = (each.float().nan_to_num(0, 0, 0) for each in (a, b))
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp_min(1e-12))
