# SPDX-License-Identifier: GPL-3.0-or-later
"""Never another picture: what other people's patches, guiders, models and samplers do to drafts.

Each test stands for a kind. Where predictions are a function of (x, sigma, conditioning), they are drafted;
where they are not, the picture is the plain sampler's and the log says who is in the way.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import threading
from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.model_management
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_custom_sampler import CFGOverride
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from torch import Tensor

from dizzydiff.drafting.devices import spread
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings

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


class Counter:
    """Guidance that falls with every call, by an attribute."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, arguments: dict[str, Any]) -> Tensor:
        self.calls += 1
        return arguments["uncond"] + 4.0 / (1 + 0.1 * self.calls) * (arguments["cond"] - arguments["uncond"])


def by_closure() -> Callable[[dict[str, Any]], Tensor]:
    last = None

    def momentum(arguments: dict[str, Any]) -> Tensor:
        nonlocal last
        move = arguments["cond"] - arguments["uncond"]
        last = move if last is None else 0.5 * last + 0.5 * move
        return arguments["uncond"] + 4.0 * last

    return momentum


def by_options() -> Callable[[dict[str, Any]], Tensor]:
    def momentum(arguments: dict[str, Any]) -> Tensor:
        options, move = arguments["model_options"], arguments["cond"] - arguments["uncond"]
        options["last_move"] = 0.5 * options.get("last_move", move) + 0.5 * move
        return arguments["uncond"] + 4.0 * options["last_move"]

    return momentum


def in_place() -> Callable[[dict[str, Any]], Tensor]:
    last = torch.zeros(1, 4, 8, 8)

    def momentum(arguments: dict[str, Any]) -> Tensor:
        move = arguments["cond"] - arguments["uncond"]
        last.mul_(0.5).add_(move, alpha=0.5)
        return arguments["uncond"] + 4.0 * last

    return momentum


def late(below: float) -> Callable[[dict[str, Any]], Tensor]:
    """Remembers nothing until the noise is low."""
    last = None

    def momentum(arguments: dict[str, Any]) -> Tensor:
        nonlocal last
        move = arguments["cond"] - arguments["uncond"]
        if float(arguments["sigma"][0]) < below:
            last = move if last is None else 0.5 * last + 0.5 * move
            move = last
        return arguments["uncond"] + 4.0 * move

    return momentum


def growing() -> Callable[[dict[str, Any]], Tensor]:
    """Falls with the length of a list that every call makes longer."""
    seen: list[float] = []

    def falling(arguments: dict[str, Any]) -> Tensor:
        seen.append(float(arguments["sigma"][0]))
        return arguments["uncond"] + 4.0 / (1 + 0.1 * len(seen)) * (arguments["cond"] - arguments["uncond"])

    return falling


@pytest.mark.parametrize("make", [Counter, by_closure, by_options, in_place, growing, lambda: late(3.0)])
@pytest.mark.parametrize("devices", [TWO, BATCH])
def test_guidance_that_remembers_is_sampled_in_order(
    make: Callable[[], Any], devices: str, teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    def guided() -> Any:
        model = teacher.clone()
        model.set_model_sampler_cfg_function(make())
        return model

    reference = plain(guided(), prompts)
    assert distance(plain(teacher, prompts), reference) > 1e-3
    with caplog.at_level(logging.WARNING, "dizzydiff"):
        result, report = drafting(guided(), prompts, devices)
    same(result, reference)
    assert widest(report) <= 1
    assert "remembers earlier model calls" in caplog.text or "one noise level" in caplog.text


def in_a_dict(network: Any, output: Tensor) -> Tensor:
    memory = vars(network).setdefault("memory", {})
    memory["last"] = 0.5 * memory.get("last", output) + 0.5 * output
    return memory["last"]


def in_an_object(network: Any, output: Tensor) -> Tensor:
    memory = vars(network).setdefault("memory", SimpleNamespace(calls=0))
    memory.calls += 1
    return output / (1 + 0.1 * memory.calls)


def in_an_attribute(network: Any, output: Tensor) -> Tensor:
    network.memory = getattr(network, "memory", 0) + 1
    return output / (1 + 0.1 * network.memory)


@pytest.mark.parametrize("remembering", [in_a_dict, in_an_object, in_an_attribute])
def test_what_a_patch_keeps_on_the_network_is_seen_and_put_back(
    remembering: Callable[[Any, Tensor], Tensor],
    teacher: Any,
    prompts: Prompts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As TeaCache and MagCache do for Wan. Each device's network has its own here, and begins it late."""

    def wrapper(executor: Any, x: Tensor, timestep: Tensor, *rest: Any, **named: Any) -> Tensor:
        output = executor(x, timestep, *rest, **named)
        late = float(timestep[0]) < 500
        return remembering(executor.class_obj, output) if late else output

    model = teacher.clone()
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, wrapper)
    network = model.get_model_object("diffusion_model")
    reference = plain(model, prompts)
    assert distance(plain(teacher, prompts), reference) > 0.01
    del network.memory
    result, report = drafting(model, prompts, TWO)
    del network.memory
    same(result, reference)
    assert report is None and "remembers earlier model calls" in caplog.text


@pytest.mark.parametrize("below", [math.inf, 3.0])
def test_guidance_that_draws_random_numbers_is_the_plain_samplers(
    below: float, teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, or when the noise is low: what drafts drew of them is put back."""

    def noisy(arguments: dict[str, Any]) -> Tensor:
        move = arguments["cond"] - arguments["uncond"]
        if float(arguments["sigma"][0]) < below:
            move = move * (1 + 0.5 * torch.randn(()))
        return arguments["uncond"] + 4.0 * move

    model = teacher.clone()
    model.set_model_sampler_cfg_function(noisy)
    result, _ = drafting(model, prompts, TWO)
    same(result, plain(model, prompts))
    assert "draws random numbers" in caplog.text


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
@pytest.mark.parametrize("devices", [TWO, BATCH])
def test_caches_are_the_plain_samplers(node: Any, devices: str, teacher: Any, prompts: Prompts) -> None:
    cached = node.execute(teacher, 0.2, 0.15, 0.95, False).result[0]
    result, _ = drafting(cached, prompts, devices)
    same(result, plain(cached, prompts))


def test_a_guider_that_is_changed_for_the_time_of_a_call_is_each_devices_own(
    teacher: Any, prompts: Prompts
) -> None:
    """Core's CFG Override sets the guider's cfg and puts it back: with one guider for two threads, one
    restores what the other had set.
    """
    model = CFGOverride.execute(teacher, 1.0, 0.0, 0.3).result[0]
    reference = plain(model, prompts)
    assert distance(plain(teacher, prompts), reference) > 0.01
    results = [drafting(model, prompts, TWO) for _ in range(3)]
    assert all(torch.equal(result, results[0][0]) for result, _ in results)
    assert distance(results[0][0], reference) < TOLERANCE
    assert widest(results[0][1]) == 2


def test_a_patch_on_the_main_devices_network_is_not_run_beside_it(
    teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    """What swaps the forward of one network while it calls, as cached forwards do, works on that network
    alone.
    """
    model = teacher.clone()
    network = model.get_model_object("diffusion_model")
    inside: list[str] = []

    def swapping(apply_model: Any, arguments: dict[str, Any]) -> Tensor:
        original = network.forward
        network.forward = lambda *args, **kwargs: 0.5 * original(*args, **kwargs)
        inside.append(threading.current_thread().name)
        try:
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        finally:
            del network.forward

    model.set_model_unet_function_wrapper(swapping)
    reference = plain(model, prompts)
    inside.clear()
    result, report = drafting(model, prompts, TWO)
    same(result, reference)
    assert widest(report) <= 1
    assert set(inside) == {threading.main_thread().name}
    assert "network of the main device" in caplog.text
    assert "forward" not in vars(network)


def holding_its_method(network: Any) -> Callable[..., Tensor]:
    original = network.forward
    return lambda *args, **kwargs: 0.5 * original(*args, **kwargs)


def bound_to_it(network: Any) -> Callable[..., Tensor]:
    def half(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return 0.5 * type(self).forward(self, *args, **kwargs)

    return MethodType(half, network)


@pytest.mark.parametrize("replaced", [holding_its_method, bound_to_it])
def test_a_replaced_forward_that_is_bound_to_the_main_devices_network_is_not_run_beside_it(
    replaced: Callable[[Any], Any], teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica has the same object patch, and would run the main device's weights."""
    model = teacher.clone()
    network = model.get_model_object("diffusion_model")
    model.add_object_patch("diffusion_model.forward", replaced(network))
    reference = plain(model, prompts)
    assert distance(plain(teacher, prompts), reference) > 0.01
    result, report = drafting(model, prompts, TWO)
    same(result, reference)
    assert widest(report) <= 1
    assert f"{replaced.__name__} (test_drafting_trust) works on the network of the main" in caplog.text


@pytest.mark.parametrize("devices", [TWO, BATCH])
def test_patches_that_read_one_noise_level_see_their_own(
    devices: str, teacher: Any, prompts: Prompts
) -> None:
    shrunk = PatchModelAddDownscale.execute(teacher, 3, 2.0, 0.0, 0.6, True, "bicubic", "bicubic").result[0]
    result, _ = drafting(shrunk, prompts, devices)
    assert distance(result, plain(shrunk, prompts)) < TOLERANCE


@pytest.mark.parametrize("texts", [1, 3])
def test_conditioning_of_other_rows_than_the_latents_is_the_plain_samplers(
    texts: int, teacher: Any, clip: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("a large red circle on white", "a small blue square on black", "a large green triangle on white")
    each = [encoded(clip, word) for word in words[:texts]]
    mixed = ([[torch.cat([one[0][0] for one in each]), each[0][0][1]]], prompts[1])
    result, report = drafting(teacher, mixed, BATCH, rows=2)
    assert distance(result, plain(teacher, mixed, rows=2)) < TOLERANCE
    assert (widest(report) > 1) == (texts == 1)
    assert ("in a batch of several noise levels" in caplog.text) == (texts == 3)


@pytest.mark.parametrize(("shift", "percent"), [(3.0, 0.25), (6.0, 0.5), (8.0, 0.5)])
def test_a_range_that_ends_at_a_sampled_sigma_is_decided_as_core_does(
    shift: float, percent: float, teacher: Any, clip: Any, prompts: Prompts
) -> None:
    model = ModelSamplingSD3().patch(teacher, shift)[0]
    other, change = encoded(clip, "a small blue square on black"), node_helpers.conditioning_set_values
    halves = change(prompts[0], {"start_percent": 0.0, "end_percent": percent})
    ranged = (halves + change(other, {"start_percent": percent, "end_percent": 1.0}), prompts[1])
    result, report = drafting(model, ranged, BATCH, scheduler="simple", steps=8)
    assert distance(result, plain(model, ranged, scheduler="simple", steps=8)) < TOLERANCE
    assert widest(report) > 1


def test_a_sampler_whose_state_changes_its_size_runs_as_it_is(teacher: Any, prompts: Prompts) -> None:
    sampler = SamplerLCMUpscale.execute(2.0, 3, "bislerp").result[0]
    result, report = drafting(teacher, prompts, TWO, sampler, steps=6)
    assert report is None
    # That of two devices, which CFG is divided between: it grows from step to step of LCM.
    rounding = 1e-3
    assert distance(result, plain(teacher, prompts, sampler, steps=6)) < rounding


def test_a_node_that_wraps_the_sampler_finds_a_sampler_function(teacher: Any, prompts: Prompts) -> None:
    """Such as those that sample with other noise levels than they are given."""

    def wrapping(model: Any, x: Tensor, sigmas: Tensor, *, inner: Any, **rest: Any) -> Tensor:
        def lying(x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
            return model(x, sigma * 0.98, **arguments)

        return inner.sampler_function(lying, x, sigmas, **rest, **inner.extra_options)

    reports: list[Report] = []
    euler = comfy.samplers.sampler_object("euler")
    drafted = DraftRefine(euler, Settings("verified", 0, TOLERANCE), on_report=reports.append)
    model = spread(teacher, TWO, 0)
    result = sampled(model, prompts, comfy.samplers.KSAMPLER(wrapping, {"inner": drafted}))
    reference = sampled(teacher, prompts, comfy.samplers.KSAMPLER(wrapping, {"inner": euler}))
    assert distance(result, reference) < TOLERANCE
    assert widest(reports[0]) == 2


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_sde_gpu", "euler_ancestral"])
def test_a_function_that_another_pack_replaced_draws_its_own_noise(
    name: str, teacher: Any, prompts: Prompts
) -> None:
    """Reloaded, the same function is another object, with classes of its own."""
    spec = importlib.util.spec_from_file_location("comfy.k_diffusion.reloaded", k_diffusion.__file__)
    assert spec and spec.loader
    reloaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reloaded)
    sampler = comfy.samplers.KSAMPLER(getattr(reloaded, f"sample_{name}"))
    result, report = drafting(teacher, prompts, TWO, sampler, steps=20)
    assert report is not None and widest(report) == 2
    assert distance(result, plain(teacher, prompts, sampler, steps=20)) < 5 * TOLERANCE


def test_noise_of_a_kind_of_its_own_is_left_alone(
    teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    def own(model: Any, x: Tensor, sigmas: Tensor, noise_sampler: Any = None, **rest: Any) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        noise = noise_sampler or (lambda s, t: torch.rand(x.shape, generator=generator).sub(0.5))
        return k_diffusion.sample_euler_ancestral(model, x, sigmas, noise_sampler=noise, **rest)

    sampler = comfy.samplers.KSAMPLER(own)
    result, report = drafting(teacher, prompts, TWO, sampler)
    assert report is None and "a kind of its own" in caplog.text
    same(result, plain(teacher, prompts, sampler))


@pytest.mark.parametrize("wrap", [lambda function: function, functools.partial], ids=["plain", "partial"])
def test_noise_is_that_of_the_module_of_the_sampler(
    wrap: Callable[[Any], Any], teacher: Any, prompts: Prompts
) -> None:
    """Another pack's default, which is not core's."""
    spec = importlib.util.spec_from_file_location("comfy.k_diffusion.another", k_diffusion.__file__)
    assert spec and spec.loader
    other: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)

    def uniform(x: Tensor, seed: int | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        generator = torch.Generator().manual_seed(seed or 0)
        return lambda sigma, sigma_next: (torch.rand(x.shape, generator=generator) - 0.5) * 12**0.5

    other.default_noise_sampler = uniform
    sampler = comfy.samplers.KSAMPLER(wrap(other.sample_euler_ancestral))
    result, report = drafting(teacher, prompts, TWO, sampler, steps=20)
    assert report is not None and widest(report) == 2
    assert distance(result, plain(teacher, prompts, sampler, steps=20)) < 5 * TOLERANCE


def test_finding_out_whose_noise_it_is_draws_none_of_the_users(
    teacher: Any, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    """A sampler that draws from torch's own generator is sampled as it is, from the same noise."""

    def own(model: Any, x: Tensor, sigmas: Tensor, noise_sampler: Any = None, **rest: Any) -> Tensor:
        noise = noise_sampler or (lambda sigma, sigma_next: torch.randn_like(x))
        return k_diffusion.sample_euler_ancestral(model, x, sigmas, noise_sampler=noise, **rest)

    sampler = comfy.samplers.KSAMPLER(own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        reference = plain(teacher, prompts, sampler)
        torch.manual_seed(5)
        result, report = drafting(teacher, prompts, TWO, sampler)
    assert report is None and "a kind of its own" in caplog.text
    same(result, reference)


def test_the_largest_seed_draws_what_it_draws_without_drafts(teacher: Any, prompts: Prompts) -> None:
    seed = 2**64 - 1
    result, _ = drafting(teacher, prompts, TWO, seed=seed)
    assert distance(result, plain(teacher, prompts, seed=seed)) < TOLERANCE
