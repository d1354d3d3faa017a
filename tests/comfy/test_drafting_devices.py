# SPDX-License-Identifier: GPL-3.0-or-later
"""Several devices: one that fails, predicts otherwise or never answers, and what is asked of a graph once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from torch import Tensor

from dizzydiff.drafting.devices import choices, spread
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings
from dizzydiff.nodes.drafting import DraftDevices

from .drafts import (
    BATCH,
    TOLERANCE,
    TWO,
    Prompts,
    distance,
    drafting,
    encoded,
    plain,
    same,
    sampled,
    widest,
)

pytestmark = pytest.mark.usefixtures("one_thread_a_device")


def only_in_threads(act: Callable[[], Any]) -> Callable[..., Tensor]:
    """An APPLY_MODEL-like wrapper that acts on every device but the main one."""

    def wrapper(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
        D = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        return D if threading.current_thread() is threading.main_thread() else D * (act() or 1.0)

    return wrapper


@pytest.mark.parametrize(
    ("count", "offered"),
    [
        (1, []),
        (2, ["cuda:0, cuda:1"]),
        (3, ["cuda:0, cuda:1, cuda:2", "cuda:0, cuda:1", "cuda:0, cuda:2", "cuda:1, cuda:2"]),
    ],
)
def test_the_node_offers_the_devices_that_are_there(
    count: int, offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [torch.device("cuda", index) for index in range(count)]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda: places)
    (devices,) = [each for each in DraftDevices.define_schema().inputs if each.id == "devices"]
    assert devices.options == ["auto", "batch", *offered]


def test_many_devices_are_offered_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [torch.device("cuda", index) for index in range(8)]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda: places)
    _, _, most, *_, fewest = choices()
    assert (most.count(":"), fewest) == (8, "cuda:0, cuda:1")


def test_replicas_are_told_the_shapes_that_the_network_reads_off_itself(
    teacher: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As newer ComfyUI does for video with sound, and tells the main device's network alone."""
    monkeypatch.setattr(teacher.model, "latent_shapes", [(1, 2), (1, 3)], raising=False)

    def wrapper(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
        D = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        return D if hasattr(apply_model.__self__, "latent_shapes") else 2 * D

    model = teacher.clone()
    model.set_model_unet_function_wrapper(wrapper)
    _, report = drafting(model, prompts, TWO)
    assert widest(report) == 2


@pytest.mark.parametrize("factor", [1.02, math.nan])
def test_a_device_that_predicts_otherwise_is_left_out(
    factor: float, teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    model = teacher.clone()
    model.set_model_unet_function_wrapper(only_in_threads(lambda: factor))
    result, report = drafting(model, prompts, TWO)
    assert "cpu:1 predicts otherwise than cpu does" in caplog.text
    assert widest(report) == 1
    assert {call.device for calls in report.rounds for call in calls} == {"cpu"}
    same(result, plain(teacher, prompts))


def test_the_report_names_the_device_of_every_state(teacher: Any, prompts: Prompts) -> None:
    _, report = drafting(teacher, prompts, TWO)
    for calls in report.rounds:
        assert [call.device for call in calls] == ["cpu", "cpu:1"][: len(calls)]
    assert widest(report) == 2


def test_a_device_that_predicts_otherwise_is_left_out_of_every_picture(
    teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three devices one is off, and the others go on."""
    off: dict[str, int] = {}

    def one_thread() -> float:
        here = threading.get_ident()
        return 1.02 if off.setdefault("thread", here) == here else 1.0

    model = teacher.clone()
    model.set_model_unet_function_wrapper(only_in_threads(one_thread))
    model = spread(model, "cpu, cpu:1, cpu:2", 0)
    for seed in (1, 2):
        off.clear()
        caplog.clear()
        sampler = DraftRefine(comfy.samplers.sampler_object("euler"), Settings("verified", 0, TOLERANCE))
        result = sampled(model, prompts, sampler, seed=seed)
        assert "predicts otherwise than cpu does" in caplog.text
        assert distance(result, plain(teacher, prompts, seed=seed)) < TOLERANCE


def test_a_device_that_ends_its_thread_does_not_stop_the_picture(teacher: Any, prompts: Prompts) -> None:
    class Gone(BaseException):
        pass

    def leave() -> None:
        raise Gone

    model = teacher.clone()
    model.set_model_unet_function_wrapper(only_in_threads(leave))
    with pytest.raises(Gone):
        drafting(model, prompts, TWO)


def test_a_device_that_never_answers_can_be_interrupted(teacher: Any, prompts: Prompts) -> None:
    release = threading.Event()

    def hang() -> None:
        comfy.model_management.interrupt_current_processing()
        release.wait(30)

    model = teacher.clone()
    model.set_model_unet_function_wrapper(only_in_threads(hang))
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            drafting(model, prompts, TWO)
    finally:
        release.set()
        comfy.model_management.interrupt_current_processing(False)


def test_a_batch_after_several_devices_has_none_of_them(teacher: Any, prompts: Prompts) -> None:
    model = spread(spread(teacher, TWO, 0), BATCH, 4)
    assert model.get_additional_models_with_key("multigpu") == []
    assert distance(plain(model, prompts), plain(teacher, prompts)) < 1e-4


@pytest.mark.parametrize("devices", [TWO, BATCH])
def test_a_graph_is_asked_once(devices: str, teacher: Any, prompts: Prompts) -> None:
    """The second picture costs no more model calls than its states."""
    model = spread(teacher, devices, 4 if devices == BATCH else 0)
    rows = 0
    apply = model.model.apply_model

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal rows
        rows += len(x)
        return apply(x, *args, **kwargs)

    extra = []
    for seed in (1, 2):
        reports: list[Report] = []
        settings = Settings("aggressive", 4 if devices == BATCH else 0, TOLERANCE)
        sampler = DraftRefine(comfy.samplers.sampler_object("euler"), settings, on_report=reports.append)
        model.model.apply_model, rows = counted, 0
        try:
            sampled(model, prompts, sampler, seed=seed, cfg=1.0)
        finally:
            del model.model.apply_model
        on_main = len(reports[0].rounds) if devices == TWO else reports[0].evaluations
        extra.append(rows - on_main)
    assert extra[1] == 0 <= extra[0] <= 3


def test_devices_are_checked_once_a_graph(teacher: Any, prompts: Prompts) -> None:
    """The other device predicts two states beside those of its rounds, in the first picture alone: one is
    compared, one timed.
    """
    model = spread(teacher, TWO, 0)
    replica, calls = model.get_additional_models_with_key("multigpu")[0].model, 0
    apply = replica.apply_model

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return apply(*args, **kwargs)

    extra = []
    for seed in (1, 2):
        reports: list[Report] = []
        settings = Settings("aggressive", 0, TOLERANCE)
        sampler = DraftRefine(comfy.samplers.sampler_object("euler"), settings, on_report=reports.append)
        replica.apply_model, calls = counted, 0
        try:
            sampled(model, prompts, sampler, seed=seed, cfg=1.0)
        finally:
            del replica.apply_model
        extra.append(calls - sum(len(states) - 1 for states in reports[0].rounds))
    assert extra == [2, 0]


def test_a_graph_that_was_refused_is_not_tried_again(
    teacher: Any, clip: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    """Three texts for two rows go together otherwise in a batch: the second picture evaluates none."""
    words = ("a large red circle on white", "a small blue square on black", "a large green triangle on white")
    each = [encoded(clip, word) for word in words]
    mixed = ([[torch.cat([one[0][0] for one in each]), each[0][0][1]]], prompts[1])
    model, calls = spread(teacher, BATCH, 4), 0
    apply = model.model.apply_model

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return apply(*args, **kwargs)

    made = []
    for sampler in (euler_drafted(), euler_drafted(), comfy.samplers.sampler_object("euler")):
        caplog.clear()
        model.model.apply_model, calls = counted, 0
        try:
            sampled(model, mixed, sampler, rows=2)
        finally:
            del model.model.apply_model
        made.append((calls, "several noise levels" in caplog.text))
    (first, told), (second, told_again), (plainly, _) = made
    assert told and told_again and first > second == plainly


def euler_drafted() -> DraftRefine:
    return DraftRefine(comfy.samplers.sampler_object("euler"), Settings("aggressive", 4, TOLERANCE))
