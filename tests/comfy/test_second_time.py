# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks with a second time: their files' real layout, their authors' numbers, each row by itself."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_detection
import comfy.samplers
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ops import disable_weight_init
from comfy_extras.nodes_custom_sampler import SamplerCustom
from diffusers import FlowMapEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from dizzydiff.benchmarks.networks.families import NETWORKS
from dizzydiff.benchmarks.networks.subject import make
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings
from dizzydiff.nodes.guidance import StudentGuidance
from dizzydiff.nodes.students import LoadStudent
from dizzydiff.stability.identity import identity
from dizzydiff.stability.measured import measured_once
from dizzydiff.stability.profile import Effort
from dizzydiff.stability.store import Store
from dizzydiff.stability.subject import Subject as Measured
from dizzydiff.students import errors
from dizzydiff.students.core_families import with_second_time
from dizzydiff.students.library import second_time_folders
from dizzydiff.students.loader import Source, load_student
from dizzydiff.students.second_time import next_level, second_time

from .drafts import BATCH, TWO, distance, spread, widest
from .two_times import (
    OF_WIDTH,
    Reference,
    anyflow,
    drawn,
    latents,
    randomised,
    twinflow_qwen,
    twinflow_z_image,
    velocities,
)

SCHEDULE = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
LEVELS, NEXT = torch.tensor([0.9, 0.4, 1.0]), torch.tensor([0.7, 0.0, 0.9])
WEIGHTS = "diffusion_pytorch_model.safetensors"
MAKERS: dict[str, Callable[[], Reference]] = {
    "AnyFlow": anyflow,
    "AnyFlow, of the interval": lambda: anyflow("t-r", 0.4),
    "TwinFlow, Qwen-Image": twinflow_qwen,
    "TwinFlow, Z-Image": twinflow_z_image,
}


@pytest.fixture(autouse=True)
def core_knows_narrow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core reads Z-Image and Qwen-Image off a width that no test can afford; all else is read as it is."""
    detect = comfy.model_detection.detect_unet_config

    def with_width(*args: Any, **kwargs: Any) -> Any:
        found = detect(*args, **kwargs)
        return found and {**found, **OF_WIDTH.get(found.get("image_model"), {})}

    monkeypatch.setattr(comfy.model_detection, "detect_unet_config", with_width)


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {name: make_one() for name, make_one in MAKERS.items()}


def loaded(reference: Reference, folder: Path) -> Any:
    return load_student(Source(reference.save(folder), "narrow"))


def prompt(reference: Reference) -> list:
    return [[reference.context(), {}]]


@pytest.mark.parametrize("name", MAKERS)
def test_every_row_has_its_own_times_and_the_authors_numbers(
    name: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    reference = references[name]
    model = loaded(reference, tmp_path)
    x, r = latents(reference.shape, 3), torch.zeros(3) if reference.zero else NEXT
    together = velocities(model, x, LEVELS, SCHEDULE, prompt(reference))
    expected = reference.velocity(x, LEVELS, r, reference.context())
    assert distance(together, expected) <= 1e-5
    for row in range(3):
        alone = velocities(model, x[row, None], LEVELS[row, None], SCHEDULE, prompt(reference))
        assert distance(together[row, None], alone) <= 1e-5
    elsewhere = reference.velocity(x, LEVELS, r + 0.2, reference.context())
    assert distance(elsewhere, expected) > 1e-3


def test_a_mean_flow_of_cores_has_the_next_level_of_each_row() -> None:
    """HunyuanImage 2.1 distilled: core alone gives all rows that of the first."""
    subject = make(NETWORKS["HunyuanImage21 (distilled)"])
    family = second_time(f"model.{key}" for key in subject.model.model.diffusion_model.state_dict())
    assert family is not None and not family.made
    model = with_second_time(subject.model.clone(), family, "distilled")
    x = latents(subject.network.latent_rows(1)[0].shape[1:], 3)
    together = velocities(model, x, LEVELS, SCHEDULE, subject.positive)
    for row in range(3):
        core = velocities(subject.model, x[row, None], LEVELS[row, None], SCHEDULE, subject.positive)
        assert distance(together[row, None], core) <= 1e-5
    of_first = velocities(subject.model, x, LEVELS, SCHEDULE, subject.positive)
    assert distance(of_first[1:], together[1:]) > 1e-3


def test_the_next_level_is_the_highest_below() -> None:
    t = torch.tensor([1.0, 0.9 * (1 + 1e-7), 0.8, 0.3, 0.0])
    assert next_level(t, SCHEDULE).tolist() == pytest.approx([0.9, 0.7, 0.7, 0.0, 0.0])
    assert torch.equal(next_level(t, SCHEDULE.flip(0)), t)
    assert next_level(t, torch.tensor([0.7, 0.4])).tolist() == pytest.approx([0.7, 0.7, 0.7, 0.0, 0.0])


def test_outside_of_a_sampler_the_second_time_is_the_first_and_the_log_says_so(
    references: dict[str, Reference], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = references["AnyFlow"]
    model = load_student(Source(reference.save(tmp_path), "asked alone"))
    x, t = latents(reference.shape, 3), LEVELS
    options = {"wrappers": model.wrappers}
    denoised = model.model.apply_model(
        x, t, c_crossattn=reference.context().expand(3, -1, -1), transformer_options=options
    )
    expected = reference.velocity(x, t, t, reference.context())
    assert distance((x - denoised) / t[:, None, None, None, None], expected) <= 1e-5
    assert "asked alone is asked for a prediction outside" in caplog.text


def test_more_times_than_rows_are_refused_in_words(references: dict[str, Reference], tmp_path: Path) -> None:
    """Reference pictures at time zero have one of their own."""
    reference = references["TwinFlow, Qwen-Image"]
    model, x = loaded(reference, tmp_path), latents(reference.shape, 1)
    picture = {"reference_latents": [torch.ones(1, *reference.shape)]}
    at_zero = {**picture, "reference_latents_method": "index_timestep_zero"}
    velocities(model, x, LEVELS[:1], SCHEDULE, [[reference.context(), picture]])
    with pytest.raises(errors.UnsupportedModel, match="2 times for 1 rows"):
        velocities(model, x, LEVELS[:1], SCHEDULE, [[reference.context(), at_zero]])


@pytest.mark.parametrize("steps", [1, 4])
def test_euler_on_simple_sigmas_is_the_sampler_of_anyflow(
    steps: int, references: dict[str, Reference], tmp_path: Path
) -> None:
    reference = references["AnyFlow"]
    model = loaded(reference, tmp_path)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
    noise = latents(reference.shape, 2)
    mine = drawn(model, comfy.samplers.sampler_object("euler"), sigmas, prompt(reference), noise)

    theirs = FlowMapEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(steps)
    x = noise
    for t, r in itertools.pairwise(theirs.sigmas.float()):
        u = reference.velocity(x, t.expand(2), r.expand(2), reference.context())
        x = theirs.step(u, 1000 * t, x, 1000 * r).prev_sample
    assert distance(model.model.process_latent_in(mine), x) <= 1e-5


def authors_loop(
    reference: Reference, x: Tensor, sigmas: Tensor, noise: Callable[..., Tensor] | None
) -> Tensor:
    """UnifiedSampler of TwinFlow's authors at sampling_order 1: stochast_ratio 1 with noise, 0 without."""
    for t, following in itertools.pairwise(sigmas):
        velocity = reference.velocity(x, t.expand(len(x)), torch.zeros(len(x)), reference.context())
        picture, z = x - t * velocity, x + (1 - t) * velocity
        last = not following > 0
        fresh = z if noise is None or last else noise(t, following)
        x = (1 - following) * picture + following * fresh
    return x


@pytest.mark.parametrize(("sampler", "stochastic"), [("lcm", True), ("euler", False)])
def test_lcm_and_euler_are_the_samplers_of_twinflow(
    sampler: str, stochastic: bool, references: dict[str, Reference], tmp_path: Path
) -> None:
    """On the levels of the authors' four steps, given by ManualSigmas."""
    reference = references["TwinFlow, Z-Image"]
    model = loaded(reference, tmp_path)
    sigmas = torch.tensor([0.999, 0.8327, 0.6663, 0.5, 0.0])
    noise = latents(reference.shape, 1)
    mine = drawn(model, comfy.samplers.sampler_object(sampler), sigmas, prompt(reference), noise)
    fresh = comfy.k_diffusion.sampling.default_noise_sampler(noise, seed=11) if stochastic else None
    theirs = authors_loop(reference, sigmas[0] * noise, sigmas, fresh)
    assert distance(model.model.process_latent_in(mine), theirs) <= 1e-5


def narrow_mean_flow(folder: Path) -> Path:
    """HunyuanImage 2.1 distilled as its file lies on the disk: with time_r_in and guidance_in."""
    settings = {
        "image_model": "hunyuan_video",
        "in_channels": 64,
        "out_channels": 64,
        "vec_in_dim": None,
        "context_in_dim": 32,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [64, 64],
        "theta": 256,
        "patch_size": [1, 1],
        "qkv_bias": True,
        "guidance_embed": True,
        "byt5": False,
        "meanflow": True,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
    }
    network = HunyuanVideo(**settings, dtype=torch.float32, operations=disable_weight_init)
    randomised(network)
    save_file(network.state_dict(), folder / "mean_flow.safetensors")
    return folder / "mean_flow.safetensors"


def test_a_mean_flow_file_has_times_and_guidance_of_each_row(tmp_path: Path) -> None:
    path = narrow_mean_flow(tmp_path)
    model, core = load_student(Source(path, path.name)), comfy.sd.load_diffusion_model(str(path))
    x, text = latents((64, 4, 4), 3), torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(3))
    scales = [1.0, 6.0, 3.0]
    together = velocities(model, x, LEVELS, SCHEDULE, [[text, {"guidance": scales}]])
    for row, g in enumerate(scales):
        positive = StudentGuidance.execute([[text, {}]], g).result[0]
        alone = velocities(core, x[row, None], LEVELS[row, None], SCHEDULE, positive)
        assert distance(together[row, None], alone) <= 1e-5


@dataclass(frozen=True)
class Subject:
    model: Any
    positive: list
    shape: tuple[int, ...]


def subject_of(name: str, references: dict[str, Reference], folder: Path) -> Subject:
    if name in references:
        reference = references[name]
        return Subject(loaded(reference, folder), prompt(reference), reference.shape)
    path = narrow_mean_flow(folder)
    text = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(3))
    return Subject(load_student(Source(path, path.name)), [[text, {"guidance": 3.5}]], (64, 4, 4))


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("AnyFlow", TWO),
        ("TwinFlow, Z-Image", TWO),
        ("MeanFlow", TWO),
        ("AnyFlow", BATCH),
        ("MeanFlow", BATCH),
    ],
)
def test_drafts_give_the_plain_picture(
    name: str, devices: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    subject = subject_of(name, references, tmp_path)
    model = subject.model
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)
    latent = {"samples": torch.zeros(1, *subject.shape)}

    def sampled(model: Any, sampler: Any) -> Tensor:
        given = (model, True, 7, 1.0, subject.positive, subject.positive, sampler, sigmas, latent)
        return SamplerCustom.execute(*given).result[0]["samples"]

    reports: list[Report] = []
    euler = comfy.samplers.sampler_object("euler")
    settings = Settings("verified", 4 if devices == BATCH else 0, 0.01)
    result = sampled(spread(model, devices, 0), DraftRefine(euler, settings, on_report=reports.append))
    assert widest(reports[0] if reports else None) > 1
    assert distance(result, sampled(model, euler)) <= 0.01


def test_patches_reach_the_second_embedder_and_everything_else(
    references: dict[str, Reference], tmp_path: Path
) -> None:
    reference = references["AnyFlow"]
    model = loaded(reference, tmp_path)
    x, context = latents(reference.shape, 1), prompt(reference)
    before = velocities(model, x, LEVELS[:1], SCHEDULE, context)
    for layer in ("delta_embedding.0", "blocks.0.ffn.0"):
        weight = model.model.diffusion_model.get_submodule(layer).weight
        lora = {
            f"diffusion_model.{layer}.lora_A.weight": torch.ones(1, weight.shape[1]),
            f"diffusion_model.{layer}.lora_B.weight": torch.full((weight.shape[0], 1), 0.1),
        }
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        assert distance(velocities(patched, x, LEVELS[:1], SCHEDULE, context), before) > 1e-4
    torch.testing.assert_close(velocities(model, x, LEVELS[:1], SCHEDULE, context), before)


@pytest.mark.parametrize("name", ["AnyFlow", "TwinFlow, Qwen-Image", "TwinFlow, Z-Image"])
def test_a_saved_checkpoint_has_both_times_again(
    name: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    """In core's own names, as files for ComfyUI have them."""
    reference = references[name]
    model = loaded(reference, tmp_path / "transformer")
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), model)
    again = load_student(Source(tmp_path / "saved.safetensors", "saved"))
    x, context = latents(reference.shape, 1), prompt(reference)
    first, second = (velocities(each, x, LEVELS[:1], SCHEDULE, context) for each in (model, again))
    torch.testing.assert_close(first, second)


def test_a_model_of_two_times_has_an_identity(references: dict[str, Reference], tmp_path: Path) -> None:
    """Which a stability grid is kept under; the gate of AnyFlow is a part of it."""
    narrow = loaded(references["AnyFlow"], tmp_path / "one")
    config = references["AnyFlow"].save(tmp_path / "two") / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"gate_value": 0.25', '"gate_value": 0.5'),
        encoding="utf-8",
    )
    other = load_student(Source(tmp_path / "two", "narrow"))
    assert identity(narrow) == identity(narrow.clone())
    assert identity(narrow) != identity(other)


@pytest.mark.parametrize(("name", "measurable"), [("AnyFlow", False), ("TwinFlow, Z-Image", True)])
def test_stability_is_measured_where_no_other_level_counts(
    name: str, measurable: bool, references: dict[str, Reference], tmp_path: Path
) -> None:
    reference = references[name]
    latent = {"samples": torch.zeros(1, *reference.shape)}
    subject = Measured(loaded(reference, tmp_path), prompt(reference), prompt(reference), 1.0, latent)
    found = measured_once(
        subject, Effort(levels=8, probes=2, directions=1), Store(tmp_path / "profiles"), lambda made, of: None
    )
    assert (found.linearized is not None) == measurable
    assert ("depends on the other sigmas" in found.origin) != measurable


def test_folders_of_two_times_are_in_the_list(references: dict[str, Reference], tmp_path: Path) -> None:
    folder = references["AnyFlow"].save(tmp_path / "nvidia" / "transformer")
    (tmp_path / "nvidia" / "vae").mkdir()
    (tmp_path / "nvidia" / "vae" / "config.json").write_text("{}", encoding="utf-8")
    assert second_time_folders([tmp_path]) == {"nvidia": folder}


def test_the_loader_lists_a_folder_and_loads_it(references: dict[str, Reference]) -> None:
    pipeline = Path(folder_paths.get_folder_paths("diffusers")[0]) / "two times"
    references["AnyFlow"].save(pipeline / "transformer")
    try:
        (choice,) = (each for each in LoadStudent.define_schema().inputs if each.id == "student")
        assert "two times" in choice.options
        assert LoadStudent.validate_inputs("two times") is True
        model = LoadStudent.execute("two times").result[0]
    finally:
        shutil.rmtree(pipeline)
    assert type(model.model.diffusion_model.delta_embedding) is torch.nn.Sequential


def without(*names: str) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        for name in names:
            del weights[name]

    return change


def narrowed(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.update({name: weights[name][:-1].clone()})


DELTA = "condition_embedder.delta_embedder"
BROKEN: dict[str, tuple[type[Exception], str, Callable[[dict[str, Tensor]], Any]]] = {
    "half a second embedder": (
        errors.ConfigMismatch,
        "delta_embedding.2.bias is missing",
        without(f"{DELTA}.linear_2.bias"),
    ),
    "a block without a norm": (
        errors.ConfigMismatch,
        "blocks.1.norm3.weight is missing",
        without("blocks.1.norm2.weight"),
    ),
    "no layer that the width is read off": (
        errors.ConfigMismatch,
        "blocks.0.ffn.0.weight is missing",
        without("blocks.0.ffn.net.0.proj.weight"),
    ),
    "no head": (errors.UnsupportedModel, "knows no network", without("scale_shift_table")),
    "a narrower second embedder": (
        errors.ConfigMismatch,
        "delta_embedding.0.weight has shape",
        narrowed(f"{DELTA}.linear_1.weight"),
    ),
    "a narrower first one": (
        errors.ConfigMismatch,
        "size mismatch",
        narrowed("condition_embedder.time_embedder.linear_1.weight"),
    ),
    "numbers that are none": (
        errors.NotFinite,
        "delta_embedding|0.weight",
        lambda weights: weights[f"{DELTA}.linear_1.weight"].fill_(torch.nan),
    ),
    "causal": (
        errors.UnsupportedModel,
        "causal AnyFlow",
        lambda weights: weights.update({"far_patch_embedding.weight": torch.zeros(1)}),
    ),
    "another network's": (
        errors.UnsupportedModel,
        "is a WanModel",
        lambda weights: [
            weights.update({"time_text_embed_2.timestep_embedder.linear_1.bias": torch.zeros(1)}),
            *(weights.pop(key) for key in list(weights) if key.startswith(DELTA)),
        ],
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_in_words(
    kind: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    error, words, change = BROKEN[kind]
    weights = load_file(references["AnyFlow"].save(tmp_path) / WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / "broken.safetensors")
    with pytest.raises(error, match=words):
        load_student(Source(tmp_path / "broken.safetensors", "broken"))


def test_a_setting_that_nobody_knows_is_refused(references: dict[str, Reference], tmp_path: Path) -> None:
    config = references["AnyFlow"].save(tmp_path) / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"r"', '"r/t"'), encoding="utf-8")
    with pytest.raises(errors.ConfigMismatch, match="deltatime_type"):
        load_student(Source(tmp_path, "edited"))
