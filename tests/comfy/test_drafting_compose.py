# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine with what users combine: ControlNets, other guiders, video models, latents of several
parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.controlnet
import comfy.ldm.lightricks.av_model
import comfy.ldm.wan.model
import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.cldm.cldm import ControlNet
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider, RandomNoise, SamplerCustomAdvanced
from safetensors.torch import save_file

from dizzydiff.drafting.devices import spread
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings
from dizzydiff.students.loader import Source, load_unet
from nodes import ControlNetApplyAdvanced

TINY = Path(__file__).parents[2] / "tiny"
PLACES = ("batch", "cpu, cpu:1")


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_device() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher() -> Any:
    return load_unet(Source(TINY / "teacher", "tiny/teacher"))


def conditioning(seed: int, shape: tuple[int, ...] = (1, 77, 64)) -> list:
    return [[torch.randn(shape, generator=torch.Generator().manual_seed(seed)), {}]]


def parts(latent: Any) -> list[torch.Tensor]:
    return list(latent.unbind()) if latent.is_nested else [latent]


def distance(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def compare(model: Any, guider_of: Any, samples: Any, devices: str, steps: int = 14) -> tuple[Any, Report]:
    """(the drafted latent after checking that it is the sequential one, what happened)."""
    reports: list[Report] = []
    inner = comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    noise = RandomNoise.execute(3).result[0]

    def run(model: Any, sampler: Any) -> Any:
        return SamplerCustomAdvanced.execute(
            noise, guider_of(model), sampler, sigmas, {"samples": samples}
        ).result[0]["samples"]

    reference = run(model, inner)
    drafted = run(
        spread(model, devices, 0), DraftRefine(inner, Settings("verified", 0, 1e-3), on_report=reports.append)
    )
    for ours, theirs in zip(parts(drafted), parts(reference), strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < 0.005
    assert max(len(states) for states in reports[0].rounds) > 1
    return drafted, reports[0]


@pytest.fixture(scope="module")
def controlnet(teacher: Any) -> Any:
    config = {
        key: value
        for key, value in teacher.model.model_config.unet_config.items()
        if key not in ("out_channels", "dtype")
    }
    torch.manual_seed(0)
    network = ControlNet(
        **config, hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=torch.float32
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.06)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


@pytest.mark.parametrize("devices", PLACES)
@pytest.mark.parametrize("end", [1.0, 0.5])
def test_a_controlnet_steers_every_state_of_a_round(
    devices: str, end: float, teacher: Any, controlnet: Any
) -> None:
    hint = torch.rand(1, 96, 96, 3, generator=torch.Generator().manual_seed(1))
    steered = ControlNetApplyAdvanced().apply_controlnet(
        conditioning(1), conditioning(2), controlnet, hint, 1.0, 0.0, end
    )

    def guided(positive: list, negative: list) -> Any:
        def guider(model: Any) -> Any:
            made = comfy.samplers.CFGGuider(model)
            made.set_conds(positive, negative)
            made.set_cfg(3.0)
            return made

        return guider

    latent = torch.zeros(1, 4, 12, 12)
    with_hint, _ = compare(teacher, guided(*steered), latent, devices)
    without, _ = compare(teacher, guided(conditioning(1), conditioning(2)), latent, devices)
    assert distance(with_hint, without) > 0.01, "more than drafting changes"


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_a_guider_of_two_scales_is_drafted(style: str, teacher: Any) -> None:
    prompts = [conditioning(seed) for seed in (1, 2, 3)]
    compare(
        teacher,
        lambda model: DualCFGGuider.execute(model, *prompts, 3.0, 2.0, style).result[0],
        torch.zeros(2, 4, 12, 12),
        "cpu, cpu:1",
    )


def random_weights(network: torch.nn.Module, scale: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: scale * torch.randn(t.shape, generator=generator) for key, t in network.state_dict().items()}


@pytest.mark.parametrize("devices", PLACES)
def test_a_video_model_is_drafted(devices: str, tmp_path: Path) -> None:
    """Wan's layout, a flow model on five-dimensional latents."""
    network = comfy.ldm.wan.model.WanModel(
        dim=128,
        ffn_dim=128,
        num_heads=1,
        num_layers=1,
        text_dim=4096,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    file = tmp_path / "wan.safetensors"
    save_file(random_weights(network, 0.03), file)
    model = comfy.sd.load_diffusion_model(str(file))
    text = conditioning(1, (1, 6, 4096))
    compare(
        model, lambda model: BasicGuider.execute(model, text).result[0], torch.zeros(1, 16, 3, 4, 4), devices
    )


@pytest.mark.parametrize("devices", PLACES)
def test_picture_and_sound_in_one_latent_are_drafted(devices: str, tmp_path: Path) -> None:
    """LTX's layout for video with sound: a latent of two parts of different shapes."""
    config = {
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_num_attention_heads": 2,
        "cross_attention_dim": 16,
        "audio_cross_attention_dim": 16,
        "caption_channels": 16,
        "num_layers": 1,
        "connector_attention_head_dim": 8,
        "connector_num_attention_heads": 2,
        "connector_num_layers": 1,
    }
    network = comfy.ldm.lightricks.av_model.LTXAVModel(
        **config, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    file = tmp_path / "ltxav.safetensors"
    save_file(random_weights(network, 0.03), file, {"config": json.dumps({"transformer": config})})
    model = comfy.sd.load_diffusion_model(str(file))
    text = conditioning(1, (1, 6, 32))
    latent = NestedTensor([torch.zeros(1, 128, 2, 2, 2), torch.zeros(1, 8, 4, 16)])
    compare(model, lambda model: BasicGuider.execute(model, text).result[0], latent, devices)
