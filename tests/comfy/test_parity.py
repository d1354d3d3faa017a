# SPDX-License-Identifier: GPL-3.0-or-later
"""A loaded student computes what diffusers' own UNet2DConditionModel computes with the same weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_flux import FluxGuidance
from diffusers import DDIMScheduler, LCMScheduler

from dizzydiff.students.loader import Source, load_student, load_unet

from .networks import LAYOUTS, added_conditions, save_file_student, save_pipeline, unet


def reference_embedding(g: list[float], width: int, raw: bool = False) -> torch.Tensor:
    """diffusers' LatentConsistencyModelPipeline.get_guidance_scale_embedding in float64."""
    w = torch.tensor(g, dtype=torch.float64) - (0.0 if raw else 1.0)
    half = width // 2
    f = torch.exp(
        -torch.arange(half, dtype=torch.float64)
        * torch.log(torch.tensor(10000.0, dtype=torch.float64))
        / (half - 1)
    )
    angles = 1000.0 * w[:, None] * f
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def inputs(rows: int, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(rows, 4, 16, 16, generator=generator),
        torch.randn(1, 77, LAYOUTS[layout]["cross_attention_dim"], generator=generator),
    )


def conditioning(layout: str, context: torch.Tensor, g: float | list[float]) -> list:
    added = added_conditions(layout, 1)
    return [[context, {"guidance": g, **({"pooled_output": added["text_embeds"]} if added else {})}]]


def denoise(
    model, x: torch.Tensor, sigma: float, positive: list, negative: list | None = None, cfg: float = 1.0
) -> torch.Tensor:
    """One call of the model as samplers make it, on sigma times x."""
    answers = []

    def once(inner, x, sigmas, extra_args, callback, disable):
        answers.append(inner(x, sigmas[:1].expand(x.shape[0]), **extra_args))
        return x

    comfy.sample.sample_custom(
        model,
        x,
        cfg,
        comfy.samplers.KSAMPLER(once),
        torch.tensor([sigma, 0.0]),
        positive,
        negative or positive,
        torch.zeros_like(x),
        disable_pbar=True,
    )
    return answers[0]


def reference_denoise(
    network,
    model,
    layout: str,
    x: torch.Tensor,
    sigma: float,
    context: torch.Tensor,
    e: torch.Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """D(x, sigma) from diffusers' network, through core's own scalings."""
    sampling = model.get_model_object("model_sampling")
    sigma_rows = torch.full((x.shape[0],), sigma)
    added = added_conditions(layout, x.shape[0])
    with torch.no_grad():
        output = network(
            sampling.calculate_input(sigma_rows, x).to(dtype),
            sampling.timestep(sigma_rows).float(),
            context.expand(x.shape[0], -1, -1).to(dtype),
            timestep_cond=None if e is None else e.to(dtype),
            added_cond_kwargs=added or None,
        ).sample
    return sampling.calculate_denoised(sigma_rows, output.float(), x)


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


SIGMA = 2.5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("g", [[4.0], [1.0, 3.3, 7.5, 8.0]], ids=["single", "mixed"])
def test_one_call_of_a_folder(tmp_path: Path, layout: str, g: list[float]) -> None:
    network = unet(layout)
    network.save_pretrained(tmp_path / "unet")
    model = load_student(Source(tmp_path / "unet", layout))
    x, context = inputs(len(g), layout)
    ours = denoise(model, x, SIGMA, conditioning(layout, context, g if len(g) > 1 else g[0]))
    theirs = reference_denoise(network, model, layout, x * SIGMA, SIGMA, context, reference_embedding(g, 256))
    assert relative(ours, theirs) <= 1e-5


FILE_LAYOUTS = ["sd15", "sd2", "sdxl", "ssd1b"]


@pytest.mark.parametrize(
    ("layout", "prefix"),
    list(zip(FILE_LAYOUTS, ["", "unet.", "model.diffusion_model.", "unet."], strict=True)),
)
def test_one_call_of_a_file(tmp_path: Path, layout: str, prefix: str) -> None:
    network = unet(layout)
    model = load_student(Source(save_file_student(network, tmp_path / "student.safetensors", prefix), layout))
    x, context = inputs(2, layout)
    ours = denoise(model, x, SIGMA, conditioning(layout, context, [3.0, 12.0]))
    theirs = reference_denoise(
        network, model, layout, x * SIGMA, SIGMA, context, reference_embedding([3.0, 12.0], 256)
    )
    assert relative(ours, theirs) <= 1e-5


def test_512_wide_students_take_g_itself(tmp_path: Path) -> None:
    network = unet("tiny", 512)
    network.save_pretrained(tmp_path / "unet")
    model = load_student(Source(tmp_path / "unet", "raw"))
    x, context = inputs(2, "tiny")
    ours = denoise(model, x, SIGMA, conditioning("tiny", context, [2.0, 9.5]))
    theirs = reference_denoise(
        network, model, "tiny", x * SIGMA, SIGMA, context, reference_embedding([2.0, 9.5], 512, raw=True)
    )
    assert relative(ours, theirs) <= 1e-5


def test_two_signals_are_embedded_side_by_side(tmp_path: Path) -> None:
    network = unet("tiny", 1024)
    network.save_pretrained(tmp_path / "unet")
    model = load_student(Source(tmp_path / "unet", "two"))
    x, context = inputs(2, "tiny")
    positive = [[context, {"guidance": [2.0, 5.0], "guidance_2": 1.5}]]
    e = torch.cat(
        [reference_embedding([2.0, 5.0], 512, raw=True), reference_embedding([1.5, 1.5], 512, raw=True)],
        dim=1,
    )
    theirs = reference_denoise(network, model, "tiny", x * SIGMA, SIGMA, context, e)
    assert relative(denoise(model, x, SIGMA, positive), theirs) <= 1e-5


def test_core_flux_guidance_is_a_knob_and_missing_guidance_is_4(tmp_path: Path) -> None:
    unet("tiny").save_pretrained(tmp_path / "unet")
    model = load_student(Source(tmp_path / "unet", "tiny"))
    x, context = inputs(1, "tiny")
    by_core = FluxGuidance.execute([[context, {}]], 6.0).result[0]
    assert torch.equal(
        denoise(model, x, SIGMA, by_core), denoise(model, x, SIGMA, conditioning("tiny", context, 6.0))
    )
    assert torch.equal(
        denoise(model, x, SIGMA, [[context, {}]]),
        denoise(model, x, SIGMA, conditioning("tiny", context, 4.0)),
    )


def test_rows_keep_their_guidance_when_cond_and_uncond_are_batched(tmp_path: Path) -> None:
    unet("tiny").save_pretrained(tmp_path / "unet")
    model = load_student(Source(tmp_path / "unet", "tiny"))
    x, context = inputs(3, "tiny")
    positive, negative = (
        conditioning("tiny", context, [1.0, 4.0, 8.0]),
        conditioning("tiny", context * 0.5, 2.0),
    )
    together = denoise(model, x, SIGMA, positive, negative, cfg=3.0)
    cond, uncond = denoise(model, x, SIGMA, positive), denoise(model, x, SIGMA, negative)
    assert relative(together, uncond + 3.0 * (cond - uncond)) <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 2e-2), ("fp16", 3e-3)])
def test_half_precision_is_as_near_as_it_allows(tmp_path: Path, dtype: str, bound: float) -> None:
    """bf16 keeps 8 bits of every weight; the embedding of w must not lose any."""
    unet("sd15").save_pretrained(tmp_path / "unet")
    x, context = inputs(2, "sd15")
    positive = conditioning("sd15", context, [1.7, 7.9])
    exact, rounded = (
        denoise(load_student(Source(tmp_path / "unet", "sd15", d)), x, SIGMA, positive)
        for d in ("fp32", dtype)
    )
    assert 0.0 < relative(rounded, exact) <= bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_compute_with_exactly_their_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    network = unet("sd15")
    model = load_student(
        Source(save_file_student(network, tmp_path / "half.safetensors", dtype=dtype), "half")
    )
    x, context = inputs(2, "sd15")
    ours = denoise(model, x, SIGMA, conditioning("sd15", context, [3.0, 12.0]))
    theirs = reference_denoise(
        network.to(dtype).float(),
        model,
        "sd15",
        x * SIGMA,
        SIGMA,
        context,
        reference_embedding([3.0, 12.0], 256),
    )
    assert relative(ours, theirs) <= 1e-5


def test_computing_in_bf16_keeps_the_embedding(tmp_path: Path) -> None:
    unet("sd15").save_pretrained(tmp_path / "unet")
    network = load_student(Source(tmp_path / "unet", "sd15")).model.diffusion_model
    x, context = inputs(2, "sd15")
    milliweights = torch.tensor([700, 6900])
    t = torch.tensor([500.0, 500.0])
    with torch.no_grad():
        exact = network(x, t, context.expand(2, -1, -1), milliweights=milliweights)
        network.bfloat16()
        rounded = network(x.bfloat16(), t, context.expand(2, -1, -1).bfloat16(), milliweights=milliweights)
    assert relative(rounded.float(), exact) <= 3e-2


@pytest.mark.parametrize("scheduler", ["v", "eps", "lcm"])
def test_whole_latent(tmp_path: Path, scheduler: str) -> None:
    """KSampler's latent against diffusers' network walked by diffusers' timesteps and the same Euler
    steps.
    """
    pipeline = save_pipeline(tmp_path, scheduler=scheduler)
    model = load_student(Source(pipeline / "unet", "tiny"))
    network = unet("tiny")
    x, context = inputs(2, "tiny")
    ours = comfy.sample.sample(
        model,
        x,
        4,
        1.0,
        "euler",
        "simple",
        conditioning("tiny", context, [2.0, 6.0]),
        [[context, {}]],
        torch.zeros_like(x),
        disable_pbar=True,
    )
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 4)
    y = sampling.noise_scaling(sigmas[0], x.clone(), torch.zeros_like(x), max_denoise=True)
    e = reference_embedding([2.0, 6.0], 256)
    for sigma, following in itertools.pairwise(sigmas):
        denoised = reference_denoise(network, model, "tiny", y, float(sigma), context, e)
        y = denoised + following / sigma * (y - denoised)
    assert relative(ours, y) <= 1e-4


@pytest.mark.parametrize(
    ("scheduler", "reference"), [("v", DDIMScheduler), ("eps", DDIMScheduler), ("lcm", LCMScheduler)]
)
def test_sigmas_are_the_schedulers(tmp_path: Path, scheduler: str, reference: type) -> None:
    pipeline = save_pipeline(tmp_path, scheduler=scheduler)
    sampling = load_student(Source(pipeline / "unet", "tiny")).get_model_object("model_sampling")
    schedule = reference.from_pretrained(pipeline / "scheduler")
    alphas = schedule.alphas_cumprod.double()
    t = sampling.timestep(sampling.sigmas)
    torch.testing.assert_close(sampling.sigmas.double(), ((1 - alphas) / alphas).sqrt()[t], rtol=1e-4, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_steps_are_diffusers_timesteps(tmp_path: Path, steps: int) -> None:
    pipeline = save_pipeline(tmp_path, scheduler="lcm")
    sampling = load_student(Source(pipeline / "unet", "tiny")).get_model_object("model_sampling")
    schedule = LCMScheduler.from_pretrained(pipeline / "scheduler")
    schedule.set_timesteps(steps)
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)[:-1]
    assert sampling.timestep(sigmas).tolist() == schedule.timesteps.tolist()


def test_teacher_is_diffusers_network(tmp_path: Path) -> None:
    network = unet("tiny", None)
    network.save_pretrained(tmp_path / "teacher")
    model = load_unet(Source(tmp_path / "teacher", "teacher"))
    x, context = inputs(2, "tiny")
    theirs = reference_denoise(network, model, "tiny", x * SIGMA, SIGMA, context, None)
    assert relative(denoise(model, x, SIGMA, [[context, {}]]), theirs) <= 1e-5
