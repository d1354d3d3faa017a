# SPDX-License-Identifier: GPL-3.0-or-later
"""Poisson noise in ComfyUI: at the start, at the steps, and in drafts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

from dizzydiff.drafting.devices import spread
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings
from dizzydiff.nodes.noise import PoissonNoise
from dizzydiff.students.loader import Source, load_student
from dizzydiff.students.pipeline import load_clip

TINY = Path(__file__).parents[2] / "tiny"
STEPS, D = 10, 4


@pytest.fixture(scope="module")
def student() -> Any:
    return load_student(Source(TINY / "unet", "tiny"))


@pytest.fixture(scope="module")
def prompt() -> Any:
    clip = load_clip(TINY, [])
    return clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))


def sampled(model: Any, prompt: Any, noise: Any, sampler: Any) -> torch.Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", STEPS)
    latent = {"samples": torch.zeros(1, 4, 12, 12)}
    return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0]["samples"]


def test_all_parts_of_a_latent_are_stretched_alike() -> None:
    samples = NestedTensor((torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 16)))
    noise = PoissonNoise.execute(5, D).result[0].generate_noise({"samples": samples}).unbind()
    gaussian = Noise_RandomNoise(5).generate_noise({"samples": samples}).unbind()
    first, second = (float((a[1] / b[1]).mean()) for a, b in zip(noise, gaussian, strict=True))
    assert first == pytest.approx(second, rel=1e-5) and abs(first - 1) > 1e-3


def test_a_sampler_without_noise_comes_out_as_it_went_in_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    euler = comfy.samplers.sampler_object("euler")
    with caplog.at_level(logging.INFO, "dizzydiff"):
        assert PoissonNoise.execute(5, D, euler).result[1] is euler
    assert "takes no noise for its steps" in caplog.text
    assert PoissonNoise.execute(5, D).result[1].sampler_function is euler.sampler_function


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde"])
def test_the_noise_of_steps_has_the_law_and_drafts_draw_the_same(
    name: str, student: Any, prompt: Any
) -> None:
    core = comfy.samplers.sampler_object(name)
    noise, sampler = PoissonNoise.execute(7, D, core).result
    reports: list[Report] = []
    drafting = DraftRefine(sampler, Settings("verified", 0, 0.005), on_report=reports.append)
    plain = sampled(student, prompt, noise, sampler)
    drafted = sampled(spread(student, "batch", 4), prompt, noise, drafting)
    assert reports and max(len(each) for each in reports[0].rounds) > 1, "it drafts"
    off = (drafted - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert off < 0.02
    gaussian_steps = sampled(student, prompt, noise, core)
    assert (gaussian_steps - plain).square().mean().sqrt() > 0.05
