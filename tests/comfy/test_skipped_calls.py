# SPDX-License-Identifier: GPL-3.0-or-later
"""Up to every second model call of one device, and one a round of several, is skipped where that is right,
and nothing where it is not.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom

from dizzydiff.benchmarks._slowed import names
from dizzydiff.drafting.sampler import DraftRefine, Settings

from .drafts import (
    TOLERANCE,
    Prompts,
    distance,
    drafting,
    plain,
)

pytestmark = pytest.mark.usefixtures("one_thread_a_device")


def test_calls_are_skipped_and_the_picture_stays(teacher: Any, prompts: Prompts) -> None:
    reference, (result, report) = (
        plain(teacher, prompts, steps=28),
        drafting(teacher, prompts, "cpu", steps=28),
    )
    assert report is not None and report.interpolations > 0
    assert report.evaluations == len(report.rounds)
    assert distance(result, reference) < 2 * TOLERANCE


@pytest.mark.parametrize(
    ("sampler", "settings", "why"),
    [
        ("euler_ancestral", Settings(), "adds no noise"),
        ("heun", Settings(), "once a step"),
        ("euler", Settings("aggressive"), "mode verified"),
        ("euler", Settings(drafts="frozen"), "drafts extrapolated"),
        ("euler", Settings(width=1), "one prediction per round"),
    ],
)
def test_what_gains_nothing_is_sampled_plainly_and_says_why(
    sampler: str,
    settings: Settings,
    why: str,
    teacher: Any,
    prompts: Prompts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = comfy.samplers.sampler_object(sampler)
    result, report = drafting(teacher, prompts, "cpu", inner, settings)
    assert report is None and why in caplog.text
    assert torch.equal(result, plain(teacher, prompts, inner))


def test_a_run_that_rises_midway_is_sampled_plainly(
    teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    """Predictions before and after the turn lie on two trajectories, and no curve leads through both."""
    down = comfy.samplers.calculate_sigmas(teacher.get_model_object("model_sampling"), "karras", 20)
    sigmas, latent = torch.cat([down[:14], down[10:]]), {"samples": torch.zeros(1, 4, 8, 8)}
    euler = comfy.samplers.sampler_object("euler")

    def sampled(sampler: Any) -> torch.Tensor:
        result = SamplerCustom.execute(teacher, True, 7, 4.0, *prompts, sampler, sigmas, latent)
        return result.result[0]["samples"]

    assert torch.equal(sampled(DraftRefine(euler, Settings())), sampled(euler))
    assert "only fall" in caplog.text


def test_no_call_is_skipped_beside_which_a_prompt_begins_or_ends(teacher: Any, prompts: Prompts) -> None:
    positive, negative = prompts
    short = node_helpers.conditioning_set_values(positive, {"start_percent": 0.5, "end_percent": 0.6})
    both = [*positive, *short], negative
    _, report = drafting(teacher, both, "cpu", settings=Settings(tolerance=0.5), steps=24)
    assert report is not None
    sampling = teacher.get_model_object("model_sampling")
    start, end = (sampling.percent_to_sigma(percent) for percent in (0.5, 0.6))
    sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", 24)
    active = [end <= float(sigma) <= start for sigma in sigmas]
    skipped = {each.call for calls in report.rounds for each in calls if each.interpolated}
    assert any(active) and len(skipped) >= 5
    assert all(active[n - 1] == active[n] == active[n + 1] for n in skipped)


def test_a_patch_is_never_missed_by_a_call_that_is_skipped(
    teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    model = teacher.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"])
    )
    result, report = drafting(model, prompts, "cpu")
    assert report is None and "there is one device" in caplog.text and "single steps" in caplog.text
    assert torch.equal(result, plain(model, prompts))


def test_several_devices_skip_calls_of_what_is_cores_own_alone(teacher: Any, prompts: Prompts) -> None:
    devices, settings = ", ".join(names(2)), Settings("verified", 0, 3 * TOLERANCE)
    patched = teacher.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"])
    )
    reference = plain(teacher, prompts, steps=28)
    skipping, every = (
        drafting(model, prompts, devices, settings=settings, steps=28) for model in (teacher, patched)
    )
    assert skipping[1] is not None and skipping[1].interpolations > 0
    assert every[1] is not None and every[1].interpolations == 0
    assert len(skipping[1].rounds) < len(every[1].rounds)
    for result, _ in (skipping, every):
        assert distance(result, reference) < 3 * TOLERANCE
