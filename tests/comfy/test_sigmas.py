# SPDX-License-Identifier: GPL-3.0-or-later
"""Sigmas looked at, from real schedulers and profiles of a real MODEL."""

from __future__ import annotations

from pathlib import Path

import comfy.samplers
import folder_paths
import pytest
import torch

from dizzydiff.nodes.sigmas import CompareSigmas, StepsNeeded
from dizzydiff.nodes.stability import StabilityGrid
from dizzydiff.stability.errors import BadSigmas, BadTolerance
from dizzydiff.stability.measured import Measured, measured_once
from dizzydiff.stability.store import Store
from dizzydiff.students.loader import Source, load_unet

from .networks import save_pipeline
from .test_stability_nodes import SMALL, subject


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = save_pipeline(tmp_path_factory.mktemp("sigmas"))
    model = load_unet(Source(folder / "teacher", "tiny"))
    return measured_once(subject(model), SMALL, Store(folder / "profiles"), lambda made, of: None)


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))


def scheduled(measured: Measured, name: str, steps: int) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(measured.sampling, name, steps)


def compare(*sigmas: object, **inputs: object) -> tuple[torch.Tensor, list[str]]:
    """The picture, and what is said of each."""
    output = CompareSigmas.execute({f"sigmas{i}": each for i, each in enumerate(sigmas)}, **inputs)
    return output.result[0], output.ui["text"]


def test_sigmas_are_named_and_the_error_of_each_is_foretold(measured: Measured) -> None:
    karras, simple = (scheduled(measured, name, 8) for name in ("karras", "simple"))
    picture, said = compare(karras, simple, karras[4:], names="karras, plain")
    assert picture.shape[0] == 1 and picture.shape[2:] == (640, 3)
    assert said == ["karras: 8 steps", "plain: 8 steps", "3: 4 steps"]
    _, said = compare(karras, simple, names="karras, plain", profile=measured)
    assert all(line.endswith(" % off") and ": 8 steps, about " in line for line in said)


def test_a_grid_made_for_a_sampler_is_foretold_to_be_the_better_one(measured: Measured) -> None:
    sampler = comfy.samplers.sampler_object("uni_pc")
    ours = measured.sigmas_of(sampler, 6, 1.0)
    _, said = compare(ours, scheduled(measured, "linear_quadratic", 6), profile=measured, sampler=sampler)
    mine, theirs = (float(line.split("about ")[1].split()[0].replace("over", "70")) for line in said)
    assert mine < theirs


def test_what_cannot_be_foretold_is_said_and_drawn_all_the_same(
    measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    rising = scheduled(measured, "karras", 5).flip(0)
    _, said = compare(rising, torch.zeros(0), profile=measured)
    assert said == ["1: 5 steps, error unknown", "2: empty, no step"]
    assert "its sigmas do not fall to 0" in caplog.text
    adaptive = comfy.samplers.sampler_object("dpm_adaptive")
    _, said = compare(rising, profile=measured, sampler=adaptive)
    assert said == ["1: 5 steps"] and "for this sampler" in caplog.text
    unmeasured = Measured(measured.sampling, None, "Not measured: it is broken.")
    _, said = compare(rising, profile=unmeasured)
    assert said == ["1: 5 steps"] and "it is broken" in caplog.text


def test_what_are_no_sigmas_is_refused_by_its_name() -> None:
    with pytest.raises(BadSigmas, match="sigmas mine: sigma 0 is nan"):
        compare(torch.tensor([float("nan"), 0.0]), names="mine")
    with pytest.raises(BadSigmas, match="expected SIGMAS"):
        compare()


def test_steps_of_zero_are_the_fewest_within_the_tolerance(
    measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sigmas = StabilityGrid.execute(measured, 0, 1.0, "euler", tolerance=0.5).result[0]
    steps = len(sigmas) - 1
    assert steps >= 1 and f"{steps} steps, the fewest that are foretold to be within 50 %" in caplog.text
    assert torch.equal(sigmas, StabilityGrid.execute(measured, steps, 1.0, "euler").result[0])
    _, said = compare(sigmas, profile=measured, solver="euler")
    assert float(said[0].split("about ")[1].split()[0]) <= 51
    finer = StabilityGrid.execute(measured, 0, 1.0, "euler", tolerance=0.3).result[0]
    assert len(finer) > len(sigmas)
    assert len(StabilityGrid.execute(measured, 0, 0.0, "euler").result[0]) == 0
    assert len(StabilityGrid.execute(measured, 0, 0.5, "euler", tolerance=0.5).result[0]) <= len(sigmas)
    for tolerance in (0.0, float("nan"), 2.0):
        with pytest.raises(BadTolerance, match="between 0 and 1"):
            StabilityGrid.execute(measured, 0, 1.0, "euler", tolerance=tolerance)


def test_where_nothing_is_foretold_steps_of_zero_are_twenty(
    measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    adaptive = comfy.samplers.sampler_object("dpm_adaptive")
    assert len(StabilityGrid.execute(measured, 0, 1.0, "euler", sampler=adaptive).result[0]) == 21
    assert "20 are made" in caplog.text
    unmeasured = Measured(measured.sampling, None, "Not measured: it is broken.")
    assert len(StabilityGrid.execute(unmeasured, 0, 1.0, "euler").result[0]) == 21
    steps, text, picture = StepsNeeded.execute(unmeasured).result
    assert steps == 20 and "it is broken" in text and picture.min() < 0.5


def test_how_many_steps_are_told_in_words_and_as_a_picture(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dizzydiff.stability.steps.COUNTS", (1, 2, 4, 8))
    monkeypatch.setattr("dizzydiff.stability.enough.COUNTS", (1, 2, 4, 8))
    output = StepsNeeded.execute(measured, 0.5, "heun")
    steps, text, picture = output.result
    assert 1 <= steps <= 8 and "Foretold, not sampled" in text and output.ui["text"] == [text]
    assert picture.shape[0] == 1 and picture.shape[2:] == (640, 3)
