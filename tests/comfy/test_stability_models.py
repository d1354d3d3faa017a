# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models share a profile, and which have none."""

from __future__ import annotations

import io as files
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_freelunch import FreeU
from comfy_extras.nodes_model_advanced import (
    ModelNoiseScale,
    ModelSamplingAuraFlow,
    ModelSamplingContinuousV,
    ModelSamplingDiscrete,
    ModelSamplingSD3,
    RescaleCFG,
)
from comfy_extras.nodes_pag import PerturbedAttentionGuidance

from dizzydiff.drafting.devices import spread
from dizzydiff.stability.identity import Unreadable
from dizzydiff.stability.measured import key_of, measured_once
from dizzydiff.stability.profile import Effort
from dizzydiff.stability.solvers import DPMPP_2M
from dizzydiff.stability.store import Store
from dizzydiff.stability.subject import Subject
from dizzydiff.students.loader import Source, load_unet

from .networks import save_pipeline

SMALL = Effort(levels=8, probes=2, directions=1)
LAYER = "unet.time_embedding.linear_1"
PROMPT = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_unet(Source(save_pipeline(tmp_path_factory.mktemp("stability")) / "teacher", "tiny"))


def key(model: Any, cfg: float = 3.0, prompt: torch.Tensor = PROMPT, **options: Any) -> str:
    conditions = [[prompt, options]], [[prompt * 0.5, {}]]
    return key_of(Subject(model, *conditions, cfg, {"samples": torch.zeros(1, 4, 8, 8)}), SMALL)


def lora(model: Any, strength: float, up: float = 1.0) -> Any:
    weights = {
        f"{LAYER}.lora_A.weight": torch.ones(2, 64),
        f"{LAYER}.lora_B.weight": torch.full((256, 2), up),
    }
    return comfy.sd.load_lora_for_models(model, None, weights, strength, 0.0)[0]


def option(model: Any, **options: Any) -> Any:
    patched = model.clone()
    patched.model_options["transformer_options"].update(options)
    return patched


def flow(model: Any) -> Any:
    return ModelSamplingSD3().patch(model, 3.0)[0]


def wrapper(model: Any, strength: float) -> Any:
    patched = model.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, args: strength * apply(args["input"], args["timestep"])
    )
    return patched


PATCHES: dict[str, Callable[[Any, float], Any]] = {
    "RescaleCFG": lambda model, value: RescaleCFG().patch(model, value)[0],
    "PAG": lambda model, value: PerturbedAttentionGuidance.execute(model, value).result[0],
    "FreeU": lambda model, value: FreeU.execute(model, value, 1.2, 0.9, 0.2).result[0],
    "shift": lambda model, value: ModelSamplingSD3().patch(model, value)[0],
    "multiplier": lambda model, value: ModelSamplingSD3().patch(model, 3.0, value)[0],
    "noise scale": lambda model, value: ModelNoiseScale().patch(
        ModelSamplingSD3().patch(model, 3.0)[0], value
    )[0],
    "LoRA's strength": lora,
    "LoRA's weights": lambda model, value: lora(model, 1.0, value),
    "transformer option": lambda model, value: option(model, strength=value),
    "wrapper": wrapper,
    "object patch": lambda model, value: with_object_patch(model, value),
}


def with_object_patch(model: Any, value: float) -> Any:
    patched = model.clone()
    patched.add_object_patch("diffusion_model.out.0.eps", value)
    return patched


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_two_strengths_of_a_patch_are_two_models(model: Any, patch: Callable[[Any, float], Any]) -> None:
    one, again, other = (key(patch(model, value)) for value in (0.5, 0.5, 0.75))
    assert one == again
    assert len({key(model), one, other}) == 3


def test_kinds_of_sampling_with_the_same_sigmas_are_two_models(model: Any) -> None:
    kinds = [
        ModelSamplingSD3().patch(model, 3.0)[0],
        ModelSamplingAuraFlow().patch_aura(model, 3.0)[0],
        *(ModelSamplingDiscrete().patch(model, kind, False)[0] for kind in ("v_prediction", "lcm", "x0")),
        *(ModelSamplingContinuousV().patch(model, kind, 14.0, 0.03)[0] for kind in ("v_prediction",)),
    ]
    assert len({key(each) for each in (model, *kinds)}) == len(kinds) + 1


def test_a_sampling_that_is_changed_in_place_is_another_model(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, sampling = key(model), model.get_model_object("model_sampling")
    monkeypatch.setattr(sampling, "sigma_data", 0.5 * sampling.sigma_data)
    assert key(model) != before


def test_models_that_come_along_count(model: Any) -> None:
    """Such as a network that a patch calls beside the model."""

    def beside(other: Any) -> Any:
        patched = model.clone()
        patched.set_additional_models("helper", [other])
        return patched

    assert len({key(model), *(key(beside(lora(model, strength))) for strength in (0.5, 0.75))}) == 3


def test_conditioning_counts_and_the_prompt_does_not(model: Any) -> None:
    assert key(model, prompt=2 * PROMPT) == key(model)
    hooks = [
        comfy.hooks.create_hook_lora({"lora": torch.full((2,), value)}, 1.0, 0.0) for value in (1.0, 2.0)
    ]
    settings = (
        {},
        {"guidance": 1.0},
        {"guidance": 10.0},
        {"strength": 0.5},
        *({"hooks": each} for each in hooks),
    )
    assert len({key(model, **each) for each in settings}) == len(settings)


def test_where_a_model_runs_is_not_part_of_the_key(model: Any) -> None:
    assert key(spread(model, "cpu, cpu:1", 0)) == key(spread(model, "batch", 3)) == key(model)


def test_what_cannot_be_read_is_measured_each_time_and_said(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patched = option(model, handle=files.BytesIO(b"strength"))
    with pytest.raises(Unreadable, match="BytesIO"):
        key(patched)
    conditions = [[PROMPT, {}]], [[PROMPT, {}]]
    subject = Subject(patched, *conditions, 1.0, {"samples": torch.zeros(1, 4, 8, 8)})
    measured = measured_once(subject, SMALL, Store(tmp_path), lambda made, of: None)
    assert measured.linearized is not None
    assert "measured each time" in caplog.text
    assert not list(tmp_path.iterdir())


def mean_flow() -> Any:
    """A small HunyuanImage 2.1 in its distilled form, which reads the run's next sigma."""
    settings = {
        "image_model": "hunyuan_video",
        "in_channels": 64,
        "out_channels": 64,
        "vec_in_dim": None,
        "context_in_dim": 32,
        "hidden_size": 64,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [16, 16],
        "theta": 256,
        "patch_size": [1, 1],
        "qkv_bias": True,
        "guidance_embed": False,
        "byt5": False,
        "meanflow": True,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
    }
    config = comfy.supported_models.HunyuanImage21(settings)
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        network = config.get_model({}, "", device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        for parameter in network.diffusion_model.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(network.eval(), load_device=cpu, offload_device=cpu)


def test_a_model_that_reads_other_sigmas_of_the_run_gets_cores_and_is_sampled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = mean_flow()
    condition = [[torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1)), {}]]
    latent = {"samples": torch.zeros(1, 64, 4, 4)}
    subject = Subject(network, condition, condition, 1.0, latent)
    measured = measured_once(subject, SMALL, Store(tmp_path), lambda made, of: None)
    assert "depends on the other sigmas of the run" in measured.origin
    sigmas = measured.sigmas(4, 1.0, DPMPP_2M)
    assert "MeanFlow" in caplog.text
    torch.testing.assert_close(sigmas, comfy.samplers.calculate_sigmas(subject.sampling, "simple", 4))
    sampler = comfy.samplers.sampler_object("euler")
    drawn = SamplerCustom.execute(
        network, True, 1, 1.0, condition, condition, sampler, sigmas, latent
    ).result[0]
    assert drawn["samples"].isfinite().all()
