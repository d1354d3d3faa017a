# SPDX-License-Identifier: GPL-3.0-or-later
"""A student is a native MODEL: what core does to models, it does to students."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import comfy.controlnet
import comfy.model_sampling
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.cldm.cldm import ControlNet
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_model_merging import ModelMergeSimple

from dizzydiff.students.loader import Source, load_student
from dizzydiff.students.sampler import sample_student_native

from .networks import save_file_student, save_pipeline, unet

CONTEXT = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(3))
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("native"))


@pytest.fixture
def student(pipeline: Path):
    return load_student(Source(pipeline / "unet", "tiny"))


def sample(
    model, sampler: str = "euler", latent: torch.Tensor | None = None, positive: list | None = None, **kwargs
) -> torch.Tensor:
    positive = positive or [[CONTEXT, {"guidance": [2.0, 7.0]}]]
    return comfy.sample.sample(
        model,
        NOISE,
        3,
        1.0,
        sampler,
        "normal",
        positive,
        positive,
        torch.zeros_like(NOISE) if latent is None else latent,
        disable_pbar=True,
        seed=1,
        **kwargs,
    )


def diffusers_lora(down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    key = "unet.time_embedding.linear_1"
    return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}


def test_lora_under_the_guidance_changes_the_weights_it_names(pipeline: Path, student) -> None:
    """On linear_1, the layer the guidance enters: a student with the delta baked in gives the same latent."""
    torch.manual_seed(0)
    down, up = torch.randn(2, 64) * 0.1, torch.randn(256, 2) * 0.1
    with_lora, _ = comfy.sd.load_lora_for_models(student, None, diffusers_lora(down, up), 1.0, 0.0)
    network = unet("tiny")
    network.time_embedding.linear_1.weight += up @ down
    network.save_pretrained(pipeline / "baked")
    baked = load_student(Source(pipeline / "baked", "baked"))
    result = sample(with_lora)
    torch.testing.assert_close(result, sample(baked), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(result, sample(student), atol=1e-3)


def test_mask_keeps_the_unmasked_half(student) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1.0
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    result = sample(student, latent=latent, noise_mask=mask)
    torch.testing.assert_close(result[..., :4], latent[..., :4])
    assert (result[..., 4:] - latent[..., 4:]).abs().mean() > 0.1


def test_differential_diffusion_runs_on_a_student(student) -> None:
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    latent = torch.ones(2, 4, 8, 8)
    change = (
        (sample(DifferentialDiffusion.execute(student).result[0], latent=latent, noise_mask=ramp) - latent)
        .abs()
        .mean((0, 1, 2))
    )
    assert change[0] < 0.5 * change[-1]


def test_controlnet_reaches_the_student(student) -> None:
    config = {
        key: value
        for key, value in student.model.model_config.unet_config.items()
        if key not in ("out_channels", "dtype")
    }
    torch.manual_seed(0)
    network = ControlNet(
        **config, hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=torch.float32
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
    hint = torch.ones(1, 3, 64, 64)
    hinted = [
        [
            CONTEXT,
            {
                "guidance": [2.0, 7.0],
                "control": control.copy().set_cond_hint(hint, 1.0),
                "control_apply_to_uncond": True,
            },
        ]
    ]
    assert not torch.allclose(sample(student, positive=hinted), sample(student), atol=1e-3)


def test_merging_two_students_averages_all_weights(pipeline: Path, student) -> None:
    first, second = unet("tiny"), unet("tiny", seed=9)
    second.save_pretrained(pipeline / "second")
    (merged,) = ModelMergeSimple().merge(student, load_student(Source(pipeline / "second", "second")), 0.5)
    average = copy.deepcopy(first)
    average.load_state_dict(
        {key: (t + second.state_dict()[key]) / 2 for key, t in first.state_dict().items()}
    )
    average.save_pretrained(pipeline / "average")
    torch.testing.assert_close(
        sample(merged), sample(load_student(Source(pipeline / "average", "average"))), rtol=1e-4, atol=1e-4
    )


def test_replica_on_another_device_answers_alike(student) -> None:
    replica = student.deepclone_multigpu(new_load_device=torch.device("cpu", 1))
    assert replica.load_device == torch.device("cpu", 1)
    assert replica.model is not student.model
    torch.testing.assert_close(sample(replica), sample(student))


def test_saved_checkpoint_is_a_student_again(tmp_path: Path, student) -> None:
    """What CheckpointSave writes keeps the guidance input and the prediction type."""
    path = tmp_path / "saved.safetensors"
    comfy.sd.save_checkpoint(str(path), student)
    again = load_student(Source(path, "saved"))
    assert again.model.guidance.width == 256
    assert isinstance(again.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)
    mine, theirs = student.model.state_dict(), again.model.state_dict()
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine if key.startswith("diffusion_model."))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_sde", "lcm", "uni_pc", "res_multistep"])
def test_every_kind_of_core_sampler_runs(student, sampler: str) -> None:
    assert sample(student, sampler).isfinite().all()


def test_student_sampler_without_noise_is_ddim(student) -> None:
    sigmas = comfy.samplers.calculate_sigmas(student.get_model_object("model_sampling"), "normal", 4)
    positive = [[CONTEXT, {"guidance": 3.0}]]

    def run(eta: float, seed: int) -> torch.Tensor:
        sampler = comfy.samplers.KSAMPLER(sample_student_native, extra_options={"eta": eta})
        return comfy.sample.sample_custom(
            student,
            NOISE,
            1.0,
            sampler,
            sigmas,
            positive,
            positive,
            torch.zeros_like(NOISE),
            disable_pbar=True,
            seed=seed,
        )

    euler = comfy.sample.sample_custom(
        student,
        NOISE,
        1.0,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        positive,
        positive,
        torch.zeros_like(NOISE),
        disable_pbar=True,
    )
    torch.testing.assert_close(run(0.0, 1), euler, rtol=1e-4, atol=1e-4)
    assert torch.equal(run(1.0, 1), run(1.0, 1))
    assert not torch.allclose(run(1.0, 1), run(1.0, 2), atol=1e-3)


def test_guidance_outside_the_trained_range_warns_and_goes_on(
    student, caplog: pytest.LogCaptureFixture
) -> None:
    assert sample(student, positive=[[CONTEXT, {"guidance": 20.0}]]).isfinite().all()
    assert "range 1 to 8" in caplog.text
    caplog.clear()
    sample(student)
    assert "range" not in caplog.text


def test_loading_makes_no_second_copy(tmp_path: Path, root: Path) -> None:
    """Private memory during loading stays within 1.2 times the file, whatever dtype it is computed in."""
    small = save_file_student(unet("sd15"), tmp_path / "small.safetensors")
    files = [
        save_file_student(
            unet("sd15", block_out_channels=(128, 256, 512, 512)),
            tmp_path / f"{dtype}.safetensors",
            dtype=dtype,
        )
        for dtype in (torch.float32, torch.float16)
    ]
    script, comfyui = Path(__file__).with_name("peak_memory.py"), Path(comfy.utils.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-P", script, comfyui, root, small, *files],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stderr
    shares = [float(line) for line in run.stdout.split()]
    assert len(shares) == len(files)
    assert max(shares) <= 1.2, shares
