# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices of unequal speed: by a clock that only model calls set forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from torch import Tensor

from dizzydiff.benchmarks._slowed import SimulatedClock, at_each_call, lasting, names, simulated_s
from dizzydiff.drafting.devices import spread
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings

from .drafts import TOLERANCE, Prompts, distance, plain, sampled

pytestmark = pytest.mark.usefixtures("one_thread_a_device")
STEPS = 20


class Devices:
    """A model on devices of which each call lasts as long as its thread is told."""

    def __init__(self, model: Any, seconds: list[float]) -> None:
        self.seconds, self.clock, self.said = seconds, SimulatedClock(), list[str]()
        self.model = spread(model, ", ".join(names(len(seconds))), 0)

    def picture(
        self, prompts: Prompts, seconds: list[float] | None = None, **given: Any
    ) -> tuple[Tensor, Report]:
        """With these seconds a call; given: mode, and what ``sampled`` takes."""
        reports: list[Report] = []
        sampler = DraftRefine(
            comfy.samplers.sampler_object(given.pop("sampler", "euler")),
            Settings(given.pop("mode", "verified"), 0, TOLERANCE),
            on_report=reports.append,
            on_message=self.said.append,
            clock=self.clock,
        )
        with at_each_call(self.model, [lasting(self.clock, each) for each in seconds or self.seconds]):
            result = sampled(self.model, prompts, sampler, steps=STEPS, **given)
        return result, reports[0]


def evaluated(report: Report) -> list[list[tuple[int, str, int]]]:
    return [[(call.call, call.device, call.rounds) for call in calls] for calls in report.rounds]


def test_a_device_of_half_the_speed_drafts_ahead_and_holds_no_round_up(
    teacher: Any, prompts: Prompts
) -> None:
    devices = Devices(teacher, [1.0, 2.0])
    result, report = devices.picture(prompts)
    assert report.speeds == {"cpu": 1.0, "cpu:1": 0.5}
    by_slow = [call for calls in report.rounds for call in calls if call.device == "cpu:1"]
    assert by_slow and {call.rounds for call in by_slow} == {2}
    assert any(call.accepted for call in by_slow)
    assert simulated_s(report, {"cpu": 1.0, "cpu:1": 2.0, "": 0.0}) < STEPS
    assert distance(result, plain(teacher, prompts, steps=STEPS)) < TOLERANCE


@pytest.mark.parametrize("seconds", [[1.0, 2.0], [1.0, 1.4, 3.0], [2.0, 1.0]])
def test_pictures_are_the_same_whatever_the_clock_says_later(
    seconds: list[float], teacher: Any, prompts: Prompts
) -> None:
    """The first and those after it; and those of other nodes that measure within the same classes."""
    devices = Devices(teacher, seconds)
    first, report = devices.picture(prompts)
    for later in (seconds, [1.0] * len(seconds), seconds[::-1]):
        result, again = devices.picture(prompts, later)
        assert torch.equal(result, first) and evaluated(again) == evaluated(report)
    noisy = [each * by for each, by in zip(seconds, (1.04, 0.97, 1.02), strict=False)]
    result, again = Devices(teacher, noisy).picture(prompts)
    assert torch.equal(result, first) and evaluated(again) == evaluated(report)


@pytest.mark.parametrize("off", [1.0, 1.15, 0.9])
def test_devices_that_are_hardly_apart_share_every_round(off: float, teacher: Any, prompts: Prompts) -> None:
    devices = Devices(teacher, [1.0, off])
    result, report = devices.picture(prompts)
    for calls in report.rounds:
        evaluated = [call for call in calls if not call.interpolated]
        assert [call.device for call in evaluated] == ["cpu", "cpu:1"][: len(evaluated)]
        assert {call.rounds for call in evaluated} == {1}
    assert torch.equal(result, Devices(teacher, [1.0, 1.0]).picture(prompts)[0])


def test_a_device_that_does_not_pay_is_left_out_and_named(teacher: Any, prompts: Prompts) -> None:
    devices = Devices(teacher, [1.0, 4.0])
    _, report = devices.picture(prompts)
    assert {call.device for calls in report.rounds for call in calls} <= {"cpu", ""}
    assert len(report.rounds) <= STEPS and report.speeds["cpu:1"] == 0.25
    said = [each for each in devices.said if "cpu:1" in each]
    assert len(said) == 1 and "cpu:1 evaluates nothing: a call takes 4 times as long" in said[0]


def test_a_slow_main_device_leaves_the_picture_to_a_fast_one(teacher: Any, prompts: Prompts) -> None:
    devices = Devices(teacher, [4.0, 1.0])
    result, report = devices.picture(prompts)
    on = [call.device for calls in report.rounds for call in calls if not call.interpolated]
    assert set(on[2:]) == {"cpu:1"}
    assert any("cpu evaluates nothing" in each for each in devices.said)
    assert distance(result, plain(teacher, prompts, steps=STEPS)) < TOLERANCE


def test_where_every_draft_is_used_a_fast_device_takes_two_states(teacher: Any, prompts: Prompts) -> None:
    _, report = Devices(teacher, [1.0, 2.0]).picture(prompts, mode="aggressive")
    assert [call.device for call in report.rounds[2]] == ["cpu", "cpu", "cpu:1"]


def test_patches_of_others_are_never_drafted_far_ahead(teacher: Any, prompts: Prompts) -> None:
    """They are looked at after every round, when nobody may be at work."""
    model = teacher.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"])
    )
    _, report = Devices(model, [1.0, 2.0]).picture(prompts)
    assert {call.rounds for calls in report.rounds for call in calls} == {1}


def test_the_line_says_what_the_devices_gained(teacher: Any, prompts: Prompts) -> None:
    devices = Devices(teacher, [1.0, 1.0])
    _, report = devices.picture(prompts)
    assert report.times_as_fast == pytest.approx(STEPS * report.call_s / report.seconds)
    told = f"({report.times_as_fast:.2g} times as fast as cpu alone, estimated from its calls)"
    assert report.fastest == "cpu" and any(told in each for each in devices.said)


def failing_at(nth: int) -> Callable[[Callable[[], Tensor]], Tensor]:
    made = 0

    def act(call: Callable[[], Tensor]) -> Tensor:
        nonlocal made
        made += 1
        if made == nth:
            raise RuntimeError("device lost")
        return call()

    return act


def test_a_device_that_fails_at_a_far_draft_is_left_out_and_the_image_is_finished(
    teacher: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(teacher, [1.0, 2.0])
    devices.picture(prompts)
    fail, slow = failing_at(3), lasting(devices.clock, 2.0)
    replica = devices.model.get_additional_models_with_key("multigpu")[0].model
    apply = replica.apply_model
    monkeypatch.setattr(replica, "apply_model", lambda *a, **k: fail(lambda: slow(lambda: apply(*a, **k))))
    result, report = None, None
    reports: list[Report] = []
    settings = Settings("verified", 0, TOLERANCE)
    sampler = DraftRefine(
        comfy.samplers.sampler_object("euler"),
        settings,
        on_report=reports.append,
        on_message=devices.said.append,
        clock=devices.clock,
    )
    result = sampled(devices.model, prompts, sampler, steps=STEPS)
    report = reports[0]
    assert any("cpu:1 failed" in each for each in devices.said)
    assert sum(call.device == "cpu:1" for calls in report.rounds for call in calls) == 2
    assert distance(result, plain(teacher, prompts, steps=STEPS)) < TOLERANCE


def test_interrupting_ends_far_drafts_too(teacher: Any, prompts: Prompts) -> None:
    devices, calls = Devices(teacher, [1.0, 2.0]), 0

    def interrupting(call: Callable[[], Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 12:
            comfy.model_management.interrupt_current_processing()
        return call()

    devices.picture(prompts)
    with (
        at_each_call(devices.model, [interrupting, lambda call: call()]),
        pytest.raises(comfy.model_management.InterruptProcessingException),
    ):
        sampled(
            devices.model,
            prompts,
            DraftRefine(comfy.samplers.sampler_object("euler"), Settings("verified", 0, TOLERANCE)),
            steps=STEPS,
        )
    comfy.model_management.interrupt_current_processing(False)
    assert devices.picture(prompts)[1].speeds == {"cpu": 1.0, "cpu:1": 0.5}
