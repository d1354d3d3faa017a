# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine in ComfyUI: every sampler, both ways to evaluate a round, and what goes wrong."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

from dizzydiff.drafting.devices import devices_of, parse_devices, spread
from dizzydiff.drafting.errors import BadDevices, CannotClone
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings
from dizzydiff.nodes.drafting import DraftDevices, DraftRefineKSampler, DraftRefineSampler
from dizzydiff.students.loader import Source, load_student, load_unet
from dizzydiff.students.pipeline import load_clip
from nodes import common_ksampler

TINY = Path(__file__).parents[2] / "tiny"
UNDRAFTED = {"dpm_fast": "one by one", "dpm_adaptive": "one by one"}
"""Samplers that run as they are, and part of why."""
STEPS = 10


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_device() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prompts() -> tuple[list, list]:
    clip = load_clip(TINY, [])
    return tuple(
        clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a large red circle on white", "")
    )  # type: ignore


@pytest.fixture(scope="module")
def student() -> Any:
    return load_student(Source(TINY / "unet", "tiny"))


@pytest.fixture(scope="module")
def teacher() -> Any:
    return load_unet(Source(TINY / "teacher", "tiny/teacher"))


@pytest.fixture(scope="module")
def two(teacher: Any) -> Any:
    return spread(teacher, "cpu, cpu:1", 0)


def empty(rows: int = 1) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(rows, 4, 12, 12)}


def run(
    model: Any,
    prompts: tuple[list, list],
    name: str = "euler",
    mode: str = "verified",
    tolerance: float = 0.005,
    width: int = 0,
    cfg: float = 4.0,
    latent: dict | None = None,
    steps: int = STEPS,
    **options: Any,
) -> tuple[torch.Tensor, Report | None]:
    reports: list[Report] = []
    sampler = DraftRefine(
        comfy.samplers.sampler_object(name),
        Settings(mode, width, tolerance),  # type: ignore[arg-type]
        on_report=reports.append,
        **options,
    )
    sigmas = comfy.samplers.KSampler(model, steps, model.load_device, name, "karras", 1.0).sigmas
    result = SamplerCustom.execute(model, True, 7, cfg, *prompts, sampler, sigmas, latent or empty()).result[
        0
    ]["samples"]
    return result, reports[0] if reports else None


def plain(
    model: Any,
    prompts: tuple[list, list],
    name: str = "euler",
    cfg: float = 4.0,
    latent: dict | None = None,
    steps: int = STEPS,
) -> torch.Tensor:
    return common_ksampler(model, 7, steps, cfg, name, "karras", *prompts, latent or empty())[0]["samples"]


def deviation(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).square().mean().sqrt() / reference.square().mean().sqrt())


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_is_drafted_or_runs_as_it_is_and_says_why(
    name: str, student: Any, prompts: tuple[list, list], caplog: pytest.LogCaptureFixture
) -> None:
    batch = spread(student, "batch", 4)
    reference = plain(student, prompts, name, cfg=1.0)
    alone, _ = run(batch, prompts, name, cfg=1.0, width=1)
    assert torch.equal(alone, reference), "a width of one is the plain sampler, bit for bit"
    caplog.clear()
    with caplog.at_level(logging.INFO, "dizzydiff"):
        result, report = run(batch, prompts, name, cfg=1.0, tolerance=0.002)
    if name in UNDRAFTED:
        assert report is None and UNDRAFTED[name] in caplog.text
        assert torch.equal(result, reference)
    else:
        assert report is not None and f"in {len(report.rounds)} rounds" in caplog.text
        assert report.largest_deviation <= 0.002 * (1 + 1e-4), (
            "arrivals are foretold, and measured afterwards"
        )
        assert deviation(result, reference) < 0.05


def test_a_sampler_that_steps_otherwise_than_its_dry_run_is_told_of(
    student: Any, prompts: tuple[list, list], caplog: pytest.LogCaptureFixture
) -> None:
    """What it does to large latents alone cannot show in a dry run on single numbers."""

    def straying(model: Any, x: torch.Tensor, sigmas: torch.Tensor, **rest: Any) -> torch.Tensor:
        def shifted(x: torch.Tensor, sigma: torch.Tensor, **arguments: Any) -> torch.Tensor:
            D = model(x, sigma, **arguments)
            return D + 0.5 * D.flip(-1) if D.shape[-1] == 12 else D

        return comfy.k_diffusion.sampling.sample_euler(shifted, x, sigmas, **rest)

    model = spread(student, "batch", 4)
    sigmas = comfy.samplers.KSampler(model, STEPS, model.load_device, "euler", "karras", 1.0).sigmas
    sampler = DraftRefine(comfy.samplers.KSAMPLER(straying), Settings("verified", 4, 0.05))
    with caplog.at_level(logging.INFO, "dizzydiff"):
        SamplerCustom.execute(model, True, 7, 1.0, *prompts, sampler, sigmas, empty())
    assert "steps otherwise than a dry run" in caplog.text


@pytest.mark.parametrize("devices", ["batch", "cpu, cpu:1"])
def test_a_sampler_that_calls_once_more_than_its_dry_run_runs_as_it_is(
    devices: str, teacher: Any, prompts: tuple[list, list], caplog: pytest.LogCaptureFixture
) -> None:
    """Found out at its last call, when all has been drafted: what the devices answered then is forgotten."""

    def insisting(model: Any, x: torch.Tensor, sigmas: torch.Tensor, **rest: Any) -> torch.Tensor:
        x = comfy.k_diffusion.sampling.sample_euler(model, x, sigmas, **rest)
        if x.shape[-1] == 12:
            x = model(x, sigmas[-2] * x.new_ones(len(x)), **rest.get("extra_args", {}))
        return x

    model, sampler = spread(teacher, devices, 0), comfy.samplers.KSAMPLER(insisting)
    sigmas = comfy.samplers.KSampler(model, STEPS, model.load_device, "euler", "karras", 1.0).sigmas
    drafted = DraftRefine(sampler, Settings("aggressive", 0, 0.05))
    result, reference = (
        SamplerCustom.execute(of, True, 7, 4.0, *prompts, using, sigmas, empty()).result[0]["samples"]
        for of, using in ((model, drafted), (teacher, sampler))
    )
    assert "steps otherwise than in its dry run" in caplog.text
    torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["conservative", "aggressive", "verified"])
def test_two_devices_take_a_state_each_and_agree_with_one(
    mode: str, two: Any, teacher: Any, prompts: tuple[list, list]
) -> None:
    result, report = run(two, prompts, "dpmpp_2m", mode, steps=20)
    assert report is not None
    assert {sum(not state.interpolated for state in states) for states in report.rounds} == {1, 2}
    batched, twin = run(spread(teacher, "batch", 2), prompts, "dpmpp_2m", mode, steps=20)
    assert twin is not None and [len(states) for states in twin.rounds] == [
        len(states) for states in report.rounds
    ]
    torch.testing.assert_close(result, batched, rtol=1e-3, atol=1e-3)


def test_weight_patches_reach_the_replicas(teacher: Any, prompts: tuple[list, list]) -> None:
    patched = teacher.clone()
    key = "diffusion_model.out.2.weight"
    patched.add_patches({key: ("diff", (0.05 * torch.ones_like(patched.model.state_dict()[key]),))}, 1.0)
    reference = plain(patched, prompts)
    assert deviation(plain(teacher, prompts), reference) > 1e-3
    assert deviation(run(spread(patched, "cpu, cpu:1", 0), prompts, tolerance=1e-4)[0], reference) < 1e-3


def failing(error: Exception, when: int) -> Any:
    own = threading.local()  # of each thread, so that nothing is seen to remember

    def wrapper(apply_model: Any, arguments: dict[str, Any]) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            own.calls = getattr(own, "calls", 0) + 1
            if own.calls == when:
                raise error
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    return wrapper


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("device lost")])
def test_a_device_that_fails_is_left_out_and_the_image_is_finished(
    error: Exception, two: Any, prompts: tuple[list, list], caplog: pytest.LogCaptureFixture
) -> None:
    broken = two.clone()
    broken.set_model_unet_function_wrapper(
        failing(error, 4)
    )  # after the device was checked and timed, and a round
    result, report = run(broken, prompts, "euler", "aggressive", steps=20)
    warnings = [
        record.getMessage()
        for record in caplog.records
        if record.name == "dizzydiff" and record.levelno == logging.WARNING
    ]
    assert len(warnings) == 1 and "cpu:1 failed" in warnings[0] and str(error) in warnings[0]
    assert report is not None and [len(states) for states in report.rounds[:3]] == [1, 2, 2]
    assert {len(states) for states in report.rounds[3:]} == {1}
    assert deviation(result, plain(two, prompts, steps=20)) < 0.05
    assert run(two, prompts)[1] is not None, "the next prompt has its devices again"


def test_interruption_leaves_no_thread_behind(two: Any, prompts: tuple[list, list]) -> None:
    before = threading.active_count()
    for _ in range(100):
        interrupted = two.clone()

        def interrupt(apply_model: Any, arguments: dict[str, Any]) -> torch.Tensor:
            comfy.model_management.interrupt_current_processing()
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

        interrupted.set_model_unet_function_wrapper(interrupt)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(interrupted, prompts, "euler", "aggressive")
    comfy.model_management.interrupt_current_processing(False)
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["mask", "differential", "another pack's"])
@pytest.mark.parametrize("devices", ["batch", "cpu, cpu:1"])
def test_masks_hold_in_every_state_of_a_round(
    kind: str, devices: str, teacher: Any, prompts: tuple[list, list]
) -> None:
    model = DifferentialDiffusion.execute(teacher).result[0] if kind == "differential" else teacher
    if kind == "another pack's":
        model = teacher.clone()
        model.set_model_denoise_mask_function(
            lambda sigma, mask, extra_options: mask.sqrt() * (sigma.reshape(-1, 1, 1, 1) > 1)
        )
    ramp = torch.linspace(0, 1, 12).expand(2, 12, 12)
    latent = {
        "samples": torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0)),
        "noise_mask": (ramp > 0.5).float() if kind == "mask" else ramp,
    }
    reference = plain(model, prompts, latent=latent)
    result, report = run(spread(model, devices, 0), prompts, latent=latent, tolerance=1e-3)
    assert report is not None and max(len(states) for states in report.rounds) > 1
    assert deviation(result, reference) < 0.02


def test_conditioning_with_time_ranges_is_that_of_each_state(
    teacher: Any, prompts: tuple[list, list]
) -> None:
    positive, negative = prompts
    halves = node_helpers.conditioning_set_values(
        positive, {"start_percent": 0.0, "end_percent": 0.4}
    ) + node_helpers.conditioning_set_values(negative, {"start_percent": 0.4, "end_percent": 1.0})
    ranged = (halves, negative)
    reference = plain(teacher, ranged)
    assert deviation(plain(teacher, prompts), reference) > 0.01
    for devices in ("batch", "cpu, cpu:1"):
        assert deviation(run(spread(teacher, devices, 0), ranged, tolerance=1e-3)[0], reference) < 0.02


@pytest.mark.parametrize(
    ("cost", "told"), [(lambda states: 1.0, False), (lambda states: float(states), True)]
)
def test_a_batch_that_does_not_pay_is_told_of(
    cost: Any, told: bool, teacher: Any, prompts: tuple[list, list], caplog: pytest.LogCaptureFixture
) -> None:
    """The clock of this test advances as the model is called: once a call, or once a state."""
    now = 0.0
    model = spread(teacher, "batch", 0)
    apply = model.model.apply_model

    def advance(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal now
        now += cost(x.shape[0])
        return apply(x, *args, **kwargs)

    model.model.apply_model = advance
    try:
        with caplog.at_level(logging.INFO, "dizzydiff"):
            _, report = run(model, prompts, "euler", "aggressive", steps=20, cfg=1.0, clock=lambda: now)
    finally:
        del model.model.apply_model
    assert report is not None and max(len(states) for states in report.rounds) == 4
    assert caplog.text.count("gain little or nothing") == told, "once, after the last check"


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    teacher: Any, prompts: tuple[list, list], caplog: pytest.LogCaptureFixture
) -> None:
    model = spread(teacher, "batch", 4)
    apply, asked = model.model.apply_model, list[int]()

    def short_of_memory(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("no memory")
        return apply(x, *args, **kwargs)

    model.model.apply_model = short_of_memory
    try:
        result, report = run(model, prompts, "euler", "aggressive", steps=20, cfg=1.0)
    finally:
        del model.model.apply_model
    assert "a batch of 4 states does not fit into memory; going on with 2" in caplog.text
    assert report is not None and max(asked) == 4 and asked.count(4) == 1, "it is not tried again"
    assert max(len(states) for states in report.rounds) == 2
    assert deviation(result, plain(teacher, prompts, cfg=1.0, steps=20)) < 0.05


@pytest.mark.parametrize(
    ("devices", "error"),
    [("gpu one", "is no device"), ("cuda:99", "not on this machine"), ("", "No devices are given")],
)
def test_devices_that_are_none_are_refused(devices: str, error: str, teacher: Any) -> None:
    with pytest.raises(BadDevices, match=error):
        spread(teacher, devices, 0)


def test_devices_are_read_as_written() -> None:
    assert parse_devices(" cpu ,cpu:1") == [torch.device("cpu"), torch.device("cpu", 1)]


def test_a_model_without_a_recipe_says_which_loader_keeps_one(teacher: Any) -> None:
    model = teacher.clone()
    model.cached_patcher_init = None
    with pytest.raises(CannotClone, match="Load Diffusion Model"):
        spread(model, "cpu, cpu:1", 0)


def test_auto_leaves_out_devices_for_which_a_model_has_no_copy_and_says_so(
    teacher: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    places = [torch.device("cpu"), torch.device("cpu", 1)]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda: places)
    caplog.set_level("INFO")
    assert devices_of(spread(teacher, "auto", 0)) == 2
    assert devices_of(spread(teacher, "auto", 1)) == 1 and "found no device" not in caplog.text
    model = teacher.clone()
    model.cached_patcher_init = None
    assert devices_of(spread(model, "auto", 0)) == 1
    assert "leaves out cpu:1" in caplog.text and "no recipe" in caplog.text


def test_devices_change_between_two_prompts(teacher: Any, prompts: tuple[list, list]) -> None:
    results = [
        run(spread(teacher, devices, 0), prompts, tolerance=1e-4)[0]
        for devices in ("cpu, cpu:1", "batch", "cpu, cpu:1")
    ]
    assert torch.equal(results[0], results[2])
    assert deviation(results[1], results[0]) < 1e-2


def test_the_ksampler_node_is_core_s_at_tolerance_zero_and_shows_its_rounds_otherwise(
    two: Any, prompts: tuple[list, list]
) -> None:
    def node(tolerance: float) -> tuple[dict, torch.Tensor, str]:
        return DraftRefineKSampler.execute(
            two, 7, STEPS, 4.0, "dpmpp_2m_sde", "karras", *prompts, empty(), 1.0, "verified", 0, tolerance
        ).result

    latent, blank, report = node(0.0)
    assert torch.equal(latent["samples"], plain(two, prompts, "dpmpp_2m_sde"))
    assert blank.shape[2] == 640 and blank.min() < 0.5, "it says why nothing was drafted"
    assert "undrafted" in report
    output = DraftRefineKSampler.execute(
        two, 7, STEPS, 4.0, "dpmpp_2m_sde", "karras", *prompts, empty(), 1.0, "verified", 0, 0.05
    )
    picture, ((sentence,), (numbers,)) = output.result[1], (output.ui["text"], output.ui["draft_refine"])
    assert output.result[2] == sentence
    assert numbers["calls"] == STEPS and numbers["rounds"] < STEPS <= numbers["evaluations"]
    assert f"in {numbers['rounds']} rounds" in sentence and numbers["seconds"] > 0
    assert picture.shape[-1] == 3 and picture.shape[2] == 640 and picture.unique().numel() > 4


def test_the_nodes_compose_with_sampler_custom(teacher: Any, prompts: tuple[list, list]) -> None:
    model = DraftDevices.execute(teacher, "batch", 3).result[0]
    sampler = DraftRefineSampler.execute(comfy.samplers.sampler_object("heun"), "verified", 0, 0.01).result[0]
    sigmas = comfy.samplers.KSampler(model, STEPS, model.load_device, "heun", "karras", 1.0).sigmas
    result = SamplerCustom.execute(model, True, 7, 4.0, *prompts, sampler, sigmas, empty()).result[0][
        "samples"
    ]
    assert deviation(result, plain(teacher, prompts, "heun")) < 0.05
