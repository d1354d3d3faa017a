# SPDX-License-Identifier: GPL-3.0-or-later
"""A MODEL that is watched as ComfyUI samples it, and the sigmas that its samplers then get."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler, KSamplerSelect, SamplerCustom
from torch import Tensor

from dizzydiff.drafting.devices import spread
from dizzydiff.nodes.drafting import DraftRefineKSampler
from dizzydiff.nodes.stability import StabilityProfile
from dizzydiff.nodes.watch import WatchStability
from dizzydiff.stability import watching
from dizzydiff.stability.store import Store
from dizzydiff.stability.watched import ENOUGH, FEW
from dizzydiff.students.loader import Source, load_unet
from nodes import common_ksampler

from .networks import save_pipeline

CONTEXT = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(3))
POSITIVE, NEGATIVE = [[CONTEXT, {}]], [[CONTEXT * 0.5, {}]]
LATENT = {"samples": torch.zeros(1, 4, 8, 8)}
STEPS = 14


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("watching"))


@pytest.fixture
def model(pipeline: Path):
    return load_unet(Source(pipeline / "teacher", "tiny"))


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return tmp_path / "dizzydiff" / "stability"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    sentences: list[str] = []
    monkeypatch.setattr("dizzydiff.nodes.watch.show_at_node", sentences.append)
    return sentences


def watch(model: Any, replace_sigmas: bool = True, start_anew: bool = False) -> Any:
    return WatchStability.execute(model, replace_sigmas, start_anew).result[0]


def draw(model: Any, seed: int = 0, **changes: Any) -> Tensor:
    """By core's KSampler."""
    settings = {"sampler_name": "euler", "scheduler": "simple", "cfg": 3.0, "steps": STEPS, **changes}
    latent = settings.pop("latent", LATENT)
    return common_ksampler(model, seed, positive=POSITIVE, negative=NEGATIVE, latent=latent, **settings)[0][
        "samples"
    ]


def pictures(model: Any, count: int) -> None:
    draw(model, 100, latent={"samples": torch.zeros(count, 4, 8, 8)})


def test_pictures_stay_as_they_are_until_enough_were_watched(model, said: list[str]) -> None:
    own, watched_model = model.clone(), watch(model)
    for seed in range(FEW):
        assert torch.equal(draw(watched_model, seed), draw(own, seed))
    assert f"Watched: {FEW} of {ENOUGH} pictures" in said[-1]
    assert not torch.allclose(draw(watched_model, 9), draw(own, 9), atol=1e-3)
    assert f"Sampled on sigmas learned from {FEW} pictures, {STEPS} steps." in said


def test_learned_sigmas_are_as_many_and_go_from_the_same_noise_to_zero(model, monkeypatch) -> None:
    watched_model = watch(model)
    pictures(watched_model, FEW)
    given: list[Tensor] = []
    sample = comfy.samplers.KSAMPLER.sample

    def seen(self: Any, guider: Any, sigmas: Tensor, *rest: Any, **options: Any) -> Tensor:
        given.append(sigmas.clone())
        return sample(self, guider, sigmas, *rest, **options)

    monkeypatch.setattr(comfy.samplers.KSAMPLER, "sample", seen)
    draw(watched_model)
    (sigmas,) = given
    simple = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    assert sigmas.shape == simple.shape and sigmas.dtype == simple.dtype
    assert float(sigmas[0]) == pytest.approx(float(simple[0]), rel=1e-3) and float(sigmas[-1]) == 0
    assert bool((sigmas.diff() < 0).all()) and not torch.allclose(sigmas, simple, rtol=1e-3)


def test_once_settled_a_seed_always_gives_the_same_picture(model, said: list[str]) -> None:
    watched_model = watch(model)
    pictures(watched_model, ENOUGH)
    first = draw(watched_model)
    pictures(watched_model, 2)
    assert torch.equal(draw(watched_model), first)
    assert torch.equal(draw(watch(model)), first), "what was learned is kept in the user folder"
    assert "no more are needed" in " ".join(said)


def test_without_replacing_nothing_changes(model, said: list[str]) -> None:
    watched_model = watch(model, replace_sigmas=False)
    pictures(watched_model, ENOUGH)
    assert torch.equal(draw(watched_model), draw(model))
    assert any("Watched: 10 of 10" in sentence for sentence in said)


def test_start_anew_forgets_once(model, said: list[str]) -> None:
    pictures(watch(model), ENOUGH)
    watched_model = watch(model, start_anew=True)
    assert torch.equal(draw(watched_model), draw(model))
    draw(watched_model, 1)
    assert "Watched: 2 of" in said[-1]


@pytest.mark.parametrize("change", [{"cfg": 5.0}, {"latent": {"samples": torch.zeros(1, 4, 16, 16)}}])
def test_another_guidance_or_size_is_learned_apart(model, said: list[str], change: dict[str, Any]) -> None:
    watched_model = watch(model)
    pictures(watched_model, FEW)
    assert torch.equal(draw(watched_model, **change), draw(model, **change))
    assert "Watched: 1 of" in said[-1]


def test_another_model_is_learned_apart(model, said: list[str]) -> None:
    pictures(watch(model), FEW)
    other = model.clone()
    other.set_model_unet_function_wrapper(
        lambda apply, given: 0.9 * apply(given["input"], given["timestep"], **given["c"])
    )
    assert torch.equal(draw(watch(other)), draw(other))
    assert "Watched: 1 of" in said[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 4}, "4 steps"),
        ({"denoise": 0.5}, "does not begin at pure noise"),
        ({"sampler_name": "dpm_fast"}, "does not report its steps"),
        ({"latent": {**LATENT, "noise_mask": torch.ones(1, 1, 8, 8)}}, "only a part"),
    ],
)
def test_runs_that_are_not_watched_are_named_and_drawn_as_they_are(
    model, said: list[str], change: dict[str, Any], words: str
) -> None:
    watched_model = watch(model)
    pictures(watched_model, 1)
    assert torch.equal(draw(watched_model, **change), draw(model, **change))
    assert words in said[-1]


def test_an_interrupted_run_teaches_nothing(model, user_folder: Path) -> None:
    watched_model = watch(model)
    calls = 0

    def stop(apply: Any, given: dict[str, Any]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise comfy.model_management.InterruptProcessingException
        return apply(given["input"], given["timestep"], **given["c"])

    watched_model.set_model_unet_function_wrapper(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        draw(watched_model)
    assert not list(user_folder.glob("*"))


@pytest.mark.parametrize("name", comfy.samplers.KSAMPLER_NAMES)
def test_what_is_learned_of_a_sampler_is_what_the_model_answered(
    model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The predictions in their order, from the state in which the sampler began, or a word that they are not
    shown.
    """
    answers: list[tuple[Tensor, Tensor]] = []
    runs: list[Any] = []
    predict = comfy.samplers.CFGGuider.predict_noise

    def noted(self: Any, x: Tensor, timestep: Tensor, *rest: Any, **options: Any) -> Tensor:
        D = predict(self, x, timestep, *rest, **options)
        answers.append((x.flatten(1).clone(), D.flatten(1).clone()))
        return D

    monkeypatch.setattr(comfy.samplers.CFGGuider, "predict_noise", noted)
    learn = watching.Watcher._learn
    monkeypatch.setattr(
        watching.Watcher,
        "_learn",
        lambda self, key, known, run, sampling: runs.append(run) or learn(self, key, known, run, sampling),
    )
    draw(watch(model), sampler_name=name, scheduler="karras")
    if not runs:
        assert name in ("dpm_fast", "dpm_adaptive"), "all others show their steps"
        return
    (run,) = runs
    assert torch.equal(run.start, answers[0][0])
    where = [next(n for n, (_, made) in enumerate(answers) if torch.equal(D, made)) for D in run.denoised]
    assert where[0] == 0 and where == sorted(set(where)) and len(where) == STEPS


def test_a_drafted_run_is_watched_and_gets_the_learned_sigmas(model, said: list[str]) -> None:
    drafted = functools.partial(
        DraftRefineKSampler.execute,
        positive=POSITIVE,
        negative=NEGATIVE,
        latent_image=LATENT,
        steps=STEPS,
        cfg=3.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        mode="verified",
        predictions_per_round=0,
        tolerance=0.01,
    )
    watched_model = watch(spread(model, "cpu,cpu", 0))
    for seed in range(FEW):
        drafted(model=watched_model, seed=seed)
    plain = draw(watch(model), 5)
    result = drafted(model=watched_model, seed=5).result[0]["samples"]
    assert f"Sampled on sigmas learned from {FEW} pictures, {STEPS} steps." in said
    assert float((result - plain).norm() / plain.norm()) < 0.02


def test_a_model_is_measured_as_if_nobody_watched(model) -> None:
    watched_model = watch(model)
    pictures(watched_model, ENOUGH)
    settings = {
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "cfg": 3.0,
        "latent": LATENT,
        "levels": 8,
        "probes": 2,
    }
    one, other = (StabilityProfile.execute(each, **settings).result[0] for each in (watched_model, model))
    assert torch.equal(one.linearized.denoised, other.linearized.denoised)
    assert "read" in other.origin, "it is the same model"


def test_the_copy_of_a_watched_model_can_be_watched_apart(model) -> None:
    watched_model = watch(model)
    assert watching.unwatched(watched_model).wrappers.get("outer_sample", {}).get(watching.KEY) in (None, [])
    (watcher,) = watch(watched_model).wrappers["outer_sample"][watching.KEY]
    assert isinstance(watcher.store, Store)


def test_custom_samplers_are_watched_too(model, said: list[str]) -> None:
    sigmas = BasicScheduler.execute(model, "karras", STEPS, 1.0).result[0]
    sampler = KSamplerSelect.execute("dpmpp_2m").result[0]
    SamplerCustom.execute(watch(model), True, 1, 3.0, POSITIVE, NEGATIVE, sampler, sigmas, LATENT)
    assert "Watched: 1 of" in said[-1]


def test_a_guider_is_measured_as_if_nobody_watched(model) -> None:
    watched_model = watch(model)
    pictures(watched_model, FEW)
    origins = []
    for each in (model, watched_model, watched_model):
        guider = comfy.samplers.CFGGuider(each)
        guider.set_conds(POSITIVE, NEGATIVE)
        guider.set_cfg(3.0)
        measured = StabilityProfile.execute(guider=guider, latent=LATENT, levels=8, probes=2).result[0]
        origins.append(measured.origin)
        draw(watched_model, len(origins))
    assert ["read" in origin for origin in origins] == [False, True, True]


def test_start_anew_holds_until_something_was_learned(model) -> None:
    pictures(watch(model), ENOUGH)
    watched_model = watch(model, start_anew=True)
    draw(watched_model, sampler_name="dpm_fast")
    assert torch.equal(draw(watched_model), draw(model))


def test_more_steps_than_are_learned_for_keep_their_sigmas(model, said: list[str]) -> None:
    watched_model = watch(model)
    pictures(watched_model, FEW)
    assert torch.equal(draw(watched_model, steps=41), draw(model, steps=41))
    assert any("more than 40 steps" in sentence for sentence in said)


def test_a_black_picture_teaches_nothing_and_is_given(model, said: list[str], user_folder: Path) -> None:
    broken = model.clone()
    broken.set_model_unet_function_wrapper(lambda apply, given: given["input"] * float("nan"))
    assert draw(watch(broken)).isnan().any()
    assert "not finite" in said[-1] and not list(user_folder.glob("*"))


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_a_latent_that_changes_its_size_teaches_nothing(model, said: list[str], scale: float) -> None:
    def resizing(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any
    ) -> Tensor:
        for i, sigma in enumerate(sigmas[:-1]):
            denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
            x = torch.nn.functional.interpolate(denoised, scale_factor=scale) if i == 3 else denoised
        return x

    sigmas = BasicScheduler.execute(model, "karras", STEPS, 1.0).result[0]
    sampler = comfy.samplers.KSAMPLER(resizing)
    SamplerCustom.execute(watch(model), True, 1, 3.0, POSITIVE, NEGATIVE, sampler, sigmas, LATENT)
    assert "changes its size" in said[-1]
