# SPDX-License-Identifier: GPL-3.0-or-later
"""Guidance by noise level: every row has that of its own, alone, in a batch and in a draft."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_flux import FluxGuidance
from torch import Tensor

from dizzydiff.nodes.guidance import GuidanceSchedule, StudentGuidance
from dizzydiff.students.errors import BadSchedule
from dizzydiff.students.guidance_schedule import interpolated, parse_schedule, table_of
from dizzydiff.students.loader import Source, load_student
from dizzydiff.students.student_model import student_of

from .adapters import random_adapter
from .conftest import TINY
from .drafts import BATCH, TOLERANCE, TWO, distance, drafting, plain, widest
from .transformers import FAMILIES, build, encoder, model_of

FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": 48,
    "context_in_dim": 32,
    "hidden_size": 48,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 8, 8],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
SCHEDULE = "0: 1, 0.3: 2.3; 0.8: 6\n1: 2"


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, tuple[int, ...], list]]:
    """(MODEL, shape of a latent, CONDITIONING) of an adapter, a whole network and one of core's own."""
    encode, shape = encoder(48), FAMILIES["SD3"].shape
    teacher = build("SD3")
    context = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0))
    return {
        "adapter": (student_of(teacher, random_adapter(teacher, encode, shape), "it"), shape, encode("red")),
        "network": (load_student(Source(TINY / "unet", "tiny")), (4, 8, 8), [[context, {}]]),
        "core": (model_of("Flux", FLUX), (4, 8, 8), encode("red")),
    }


def guided(conditioning: list, g: Any) -> list:
    node = StudentGuidance.execute if isinstance(g, list) else FluxGuidance.execute
    return node(conditioning, g).result[0]


def predicted(model: Any, shape: tuple[int, ...], positive: list, sigmas: list[float]) -> Tensor:
    """D of a row at each sigma, in one batch, as a sampler asks for it."""
    sigma = torch.tensor(sigmas)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3)).repeat_interleave(
        len(sigmas), 0
    )
    answers = []

    def ask(model: Any, x: Tensor, levels: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
        at = sigma.reshape(-1, *[1] * (x.ndim - 1)) * noise
        answers.append(model(at, sigma, **extra_args))
        return x

    levels = torch.tensor([max(sigmas), 0.0])
    comfy.sample.sample_custom(
        model, noise, 1.0, comfy.samplers.KSAMPLER(ask), levels, positive, positive, noise, disable_pbar=True
    )
    return answers[0]


@pytest.mark.parametrize("kind", ["adapter", "network", "core"])
def test_rows_of_one_batch_have_the_guidance_of_their_own_noise_levels(models: Any, kind: str) -> None:
    model, shape, text = models[kind]
    sampling = model.get_model_object("model_sampling")
    shares = [0.3, 0.5, 0.9]
    sigmas = [float(sampling.percent_to_sigma(share)) for share in shares]
    scheduled = GuidanceSchedule.execute(model, SCHEDULE).result[0]
    together = predicted(scheduled, shape, guided(text, 7.0), sigmas)
    for i, (share, sigma) in enumerate(zip(shares, sigmas, strict=True)):
        g = interpolated(parse_schedule(SCHEDULE), share)
        alone = predicted(scheduled, shape, text, [sigma])
        expected = predicted(model, shape, guided(text, g), [sigma])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
        assert (expected - predicted(model, shape, guided(text, 7.0), [sigma])).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["adapter", "network", "core"])
def test_a_constant_schedule_is_that_guidance_bit_for_bit(models: Any, kind: str) -> None:
    model, shape, text = models[kind]
    sigmas = [0.9, 0.2]
    scheduled = GuidanceSchedule.execute(model, "0: 2.3").result[0]
    expected = predicted(model, shape, guided(text, 2.3), sigmas)
    assert torch.equal(predicted(scheduled, shape, guided(text, 5.0), sigmas), expected)
    assert torch.equal(predicted(scheduled, shape, text, sigmas), expected), "without any in the prompt"
    again = GuidanceSchedule.execute(scheduled, "0: 5").result[0]
    assert torch.equal(
        predicted(again, shape, text, sigmas), predicted(model, shape, guided(text, 5.0), sigmas)
    ), "the last one counts"
    assert torch.equal(predicted(scheduled, shape, text, sigmas), expected), "and leaves the first alone"


@pytest.mark.parametrize("devices", [BATCH, TWO])
def test_a_drafted_run_stays_within_the_tolerance(models: Any, prompts: Any, devices: str) -> None:
    model = GuidanceSchedule.execute(models["network"][0], SCHEDULE).result[0]
    reference = plain(model, prompts, cfg=1.0)
    result, report = drafting(model, prompts, devices, cfg=1.0)
    assert widest(report) > 1 and distance(result, reference) <= TOLERANCE
    assert distance(plain(models["network"][0], prompts, cfg=1.0), reference) > 5 * TOLERANCE


@pytest.mark.parametrize("kind", ["adapter", "network"])
def test_the_share_of_the_sampling_is_core_s_percent(models: Any, kind: str) -> None:
    """Of a flow model and of one that is not, although core only leads from percents to sigmas."""
    sampling = models[kind][0].get_model_object("model_sampling")
    shares = torch.tensor([0.0, 0.001, 0.0123, 0.5, 0.87654, 0.999, 1.0])
    sigmas = torch.tensor([float(sampling.percent_to_sigma(share)) for share in shares.tolist()])
    found = table_of([(0.0, 0.0), (1.0, 100.0)], sampling).at(sigmas) / 1000
    torch.testing.assert_close(found, 100 * shares, rtol=0, atol=0.02)


def test_a_model_without_a_guidance_input_is_left_as_it_is(
    teacher: Any, models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert GuidanceSchedule.execute(teacher, SCHEDULE).result[0] is teacher
    assert "takes no guidance as an input" in caplog.text
    GuidanceSchedule.execute(models["adapter"][0], "0: 1, 1: 9")
    assert "trained for 1 to 8" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "4", "0: x", "0: 1, 0: 2", "0.5: 1, 0.2: 2", "0: 101", "-0.1: 1", "0: nan", "1.5: 2"]
)
def test_schedules_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(BadSchedule, match="expected points"):
        parse_schedule(text)
    assert "expected points" in str(GuidanceSchedule.validate_inputs(text))
