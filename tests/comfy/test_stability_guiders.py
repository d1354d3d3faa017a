# SPDX-License-Identifier: GPL-3.0-or-later
"""A GUIDER in place of model, conditionings and CFG; and measuring again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider, RandomNoise, SamplerCustomAdvanced

from dizzydiff.nodes.stability import StabilityGrid, StabilityProfile, StabilitySampler
from dizzydiff.stability import measured as measuring
from dizzydiff.stability.errors import NothingToMeasure
from dizzydiff.stability.guiders import guider_identity, subject_of
from dizzydiff.students.loader import Source, load_unet

from .networks import save_pipeline
from .test_stability_nodes import CONTEXT, LATENT, NEGATIVE, POSITIVE, SMALL

FEW = {"cfg": 3.0, "latent": LATENT, "levels": SMALL.levels, "probes": 2, "seed": 0}
OTHER = [[CONTEXT.flip(1), {}]]


class Scaled(comfy.samplers.CFGGuider):
    """As another pack would make one: a prediction of its own, and a number that changes it."""

    scale: Any = 1.0

    def predict_noise(self, x: torch.Tensor, timestep: Any, model_options: Any = {}, seed: Any = None) -> Any:  # noqa: B006
        return super().predict_noise(x, timestep, model_options, seed) * self.scale


def core(
    model: Any, cfg: float = 3.0, kind: type = comfy.samplers.CFGGuider, positive: list = POSITIVE
) -> Any:
    guider = kind(model)
    guider.set_conds(positive, NEGATIVE)
    guider.set_cfg(cfg)
    return guider


def scaled(model: Any, scale: Any) -> Any:
    guider = core(model, kind=Scaled)
    guider.scale = scale
    return guider


def dual(model: Any, first: float, second: float) -> Any:
    return DualCFGGuider.execute(model, POSITIVE, OTHER, NEGATIVE, first, second, "regular").result[0]


GUIDERS = {
    "CFGGuider": core,
    "BasicGuider": lambda model: BasicGuider.execute(model, POSITIVE).result[0],
    "DualCFGGuider": lambda model: dual(model, 3.0, 2.0),
    "another pack's": lambda model: scaled(model, 0.9),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_unet(Source(save_pipeline(tmp_path_factory.mktemp("guiders")) / "teacher", "tiny"))


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of profiles. No plots are drawn, whose grids take most of the time."""
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    monkeypatch.setattr("dizzydiff.nodes.stability.THOROUGH", SMALL)
    monkeypatch.setattr("dizzydiff.nodes.stability.picture_of", lambda measured: torch.zeros(1, 8, 8, 3))
    return tmp_path / "dizzydiff" / "stability"


@pytest.mark.parametrize("kind", GUIDERS)
def test_any_guider_is_measured_once_and_as_it_samples(model: Any, kind: str, kept: Path) -> None:
    measured, _, carrying = StabilityProfile.execute(**FEW, guider=GUIDERS[kind](model)).result
    assert measured.linearized is not None and measured.origin.endswith("and kept.")
    again, *_ = StabilityProfile.execute(**FEW, guider=GUIDERS[kind](model)).result
    assert again.origin.endswith("and read.") and len(list(kept.iterdir())) == 1
    assert carrying.get_model_object("model_sampling").dizzydiff_measured is measured
    plain, *_ = StabilityProfile.execute(model, POSITIVE, NEGATIVE, **FEW).result
    same = torch.equal(plain.linearized.denoised, measured.linearized.denoised)
    assert same == (kind == "CFGGuider"), "what the guider predicts is measured"


def test_a_guiders_key_holds_what_changes_its_answers_and_not_the_prompt(model: Any) -> None:
    keys = [
        guider_identity(guider)
        for guider in (
            core(model),
            core(model, 5.0),
            scaled(model, 0.9),
            scaled(model, 0.8),
            dual(model, 3.0, 2.0),
            dual(model, 3.0, 2.5),
            core(model, positive=[[CONTEXT, {"strength": 0.5}]]),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert guider_identity(core(model, positive=OTHER)) == keys[0]


def test_a_guider_that_cannot_be_read_is_measured_each_time_and_says_so(
    model: Any, kept: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        guider = scaled(model, 0.9)
        with (tmp_path / "open").open("w", encoding="utf-8") as guider.log:
            measured, *_ = StabilityProfile.execute(**FEW, guider=guider).result
        assert "Measured now" in measured.origin and "not kept" in measured.origin
        assert "guider" in measured.origin or "log" in measured.origin
    assert not kept.exists()


@pytest.mark.parametrize("kind", GUIDERS)
def test_a_guider_is_sampled_as_cores_node_does(model: Any, kind: str) -> None:
    make = GUIDERS[kind]
    inputs = {
        "seed": 5,
        "steps": 3,
        "cfg": 1.0,
        "sampler_name": "euler",
        "latent_image": LATENT,
        "denoise": 1.0,
    }
    sampled = StabilitySampler.execute(**inputs, guider=make(model)).result[0]["samples"]
    measured, *_ = StabilityProfile.execute(**{**FEW, "probes": SMALL.probes}, guider=make(model)).result
    assert measured.origin.endswith("and read."), "one profile serves both nodes"
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = StabilityGrid.execute(measured, 3, 1.0, "euler", sampler=sampler).result[0]
    (noise,) = RandomNoise.execute(5).result
    expected = SamplerCustomAdvanced.execute(noise, make(model), sampler, sigmas, LATENT).result[0]["samples"]
    assert torch.equal(sampled, expected)


def test_the_negative_prompt_is_not_needed_at_cfg_1(model: Any) -> None:
    few = {**FEW, "cfg": 1.0}
    without, *_ = StabilityProfile.execute(model, POSITIVE, **few).result
    with_it, *_ = StabilityProfile.execute(model, POSITIVE, NEGATIVE, **few, measure_again=True).result
    torch.testing.assert_close(without.linearized.denoised, with_it.linearized.denoised)
    inputs = {"seed": 5, "steps": 2, "sampler_name": "euler", "latent_image": LATENT, "denoise": 1.0}
    sampled = StabilitySampler.execute(model, cfg=1.0, positive=POSITIVE, **inputs).result[0]["samples"]
    assert sampled.isfinite().all()


@pytest.mark.parametrize(
    ("connected", "cfg", "missing"),
    [
        ((None, None, None), 1.0, "model, positive;"),
        ((object(), POSITIVE, None), 4.0, "negative, which cfg 4 uses;"),
        ((None, POSITIVE, NEGATIVE), 4.0, "model;"),
    ],
)
def test_what_is_not_connected_is_named(connected: tuple, cfg: float, missing: str) -> None:
    with pytest.raises(NothingToMeasure, match=f"Not connected: {missing} expected a guider"):
        subject_of(*connected, cfg, None, LATENT)


def test_measuring_again_replaces_what_was_kept(
    model: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StabilityProfile.execute(model, POSITIVE, NEGATIVE, **FEW)
    (path,) = kept.iterdir()
    before = path.read_bytes()
    other, *_ = StabilityProfile.execute(model, OTHER, NEGATIVE, **FEW).result
    assert other.origin.endswith("and read."), "the prompt is not part of the key"
    again, *_ = StabilityProfile.execute(model, OTHER, NEGATIVE, **FEW, measure_again=True).result
    assert again.origin.startswith("Measured now by") and again.origin.endswith("and kept.")
    assert [path] == list(kept.iterdir()) and path.read_bytes() != before
    monkeypatch.setattr(measuring, "measure_model", lambda *args: pytest.fail("measured again"))
    read, *_ = StabilityProfile.execute(model, OTHER, NEGATIVE, **FEW).result
    assert torch.equal(read.linearized.denoised, again.linearized.denoised)
