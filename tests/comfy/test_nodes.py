# SPDX-License-Identifier: GPL-3.0-or-later
"""The doors: what a graph gets from each node."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch

import nodes as core_nodes
from dizzydiff.nodes.students import LoadPipeline, StudentGuidance

from .networks import save_pipeline


@pytest.fixture(scope="module")
def pipeline() -> str:
    """A random pipeline in ComfyUI's diffusers folder."""
    save_pipeline(Path(folder_paths.get_folder_paths("diffusers")[0]) / "random")
    return "random"


def picture(model, clip, vae, g: float = 4.0) -> torch.Tensor:
    positive = core_nodes.CLIPTextEncode().encode(clip, "a small red circle")[0]
    negative = core_nodes.CLIPTextEncode().encode(clip, "")[0]
    latent = core_nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    guided = StudentGuidance.execute(positive, g).result[0]
    samples = core_nodes.KSampler().sample(model, 7, 2, 1.0, "euler", "normal", guided, negative, latent)[0]
    return core_nodes.VAEDecode().decode(vae, samples)[0]


def test_pipeline_makes_pictures_that_depend_on_guidance(pipeline: str) -> None:
    model, clip, vae = LoadPipeline.execute(pipeline).result
    weak, strong = picture(model, clip, vae, 1.0), picture(model, clip, vae, 8.0)
    assert weak.shape == (1, 64, 64, 3)
    assert (weak - strong).abs().max() > 1e-3


def test_teacher_of_a_pipeline_samples_with_cfg(pipeline: str) -> None:
    model, clip, vae = LoadPipeline.execute(f"{pipeline}/teacher").result
    assert picture(model, clip, vae).isfinite().all()
