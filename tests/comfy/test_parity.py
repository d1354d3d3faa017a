# SPDX-License-Identifier: GPL-3.0-or-later
"""A loaded student computes what diffusers' own UNet2DConditionModel computes with the same weights."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch

from dizzydiff.students.loader import Source, load_student

from .networks import LAYOUTS, added_conditions, unet


def reference_embedding(g: list[float], width: int, raw: bool = False) -> torch.Tensor:
    """diffusers' LatentConsistencyModelPipeline.get_guidance_scale_embedding in float64."""
    w = torch.tensor(g, dtype=torch.float64) - (0.0 if raw else 1.0)
    half = width // 2
    f = torch.exp(-torch.arange(half, dtype=torch.float64) * torch.log(torch.tensor(10000.0, dtype=torch.float64)) / (half - 1))
    angles = 1000.0 * w[:, None] * f
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def inputs(rows: int, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(rows, 4, 16, 16, generator=generator),
            torch.randn(1, 77, LAYOUTS[layout]["cross_attention_dim"], generator=generator))


def conditioning(layout: str, context: torch.Tensor, g: float | list[float]) -> list:
    added = added_conditions(layout, 1)
    return [[context, {"guidance": g, **({"pooled_output": added["text_embeds"]} if added else {})}]]


def denoise(model, x: torch.Tensor, sigma: float, positive: list) -> torch.Tensor:
    """One call of the model as samplers make it, at CFG 1."""
    answers = []

    def once(inner, x, sigmas, extra_args, callback, disable):
        answers.append(inner(x, sigmas[:1].expand(x.shape[0]), **extra_args))
        return x

    comfy.sample.sample_custom(model, x, 1.0, comfy.samplers.KSAMPLER(once), torch.tensor([sigma, 0.0]), positive, positive,
                               torch.zeros_like(x), disable_pbar=True)
    return answers[0]


def reference_denoise(network, model, layout: str, x: torch.Tensor, sigma: float, context: torch.Tensor, e: torch.Tensor,
                      dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """D(x, sigma) from diffusers' network, through core's own scalings."""
    sampling = model.get_model_object("model_sampling")
    sigma_rows = torch.full((x.shape[0],), sigma)
    added = added_conditions(layout, x.shape[0])
    with torch.no_grad():
        output = network(sampling.calculate_input(sigma_rows, x).to(dtype), sampling.timestep(sigma_rows).float(),
                         context.expand(x.shape[0], -1, -1).to(dtype), timestep_cond=e.to(dtype),
                         added_cond_kwargs=added or None).sample
    return sampling.calculate_denoised(sigma_rows, output.float(), x)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


SIGMA = 2.5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("g", [[4.0], [1.0, 3.3, 7.5, 8.0]], ids=["single", "mixed"])
def test_folder_student_is_diffusers_network(tmp_path: Path, layout: str, g: list[float]) -> None:
    network = unet(layout)
    network.save_pretrained(tmp_path / "unet")
    model = load_student(Source(tmp_path / "unet", layout))
    x, context = inputs(len(g), layout)
    ours = denoise(model, x, SIGMA, conditioning(layout, context, g if len(g) > 1 else g[0]))
    # KSAMPLER scales the noise it is given by sigma
    theirs = reference_denoise(network, model, layout, x * SIGMA, SIGMA, context, reference_embedding(g, 256))
    assert relative(ours, theirs) <= 1e-5
