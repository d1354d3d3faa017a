# SPDX-License-Identifier: GPL-3.0-or-later
"""Drafts on model families that stand for kinds: the picture is the plain sampler's, or words say why."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import comfy.supported_models
import comfyui_version
import pytest
import torch
from packaging.version import Version
from torch import Tensor

from dizzydiff.benchmarks._compositions import another_pack
from dizzydiff.benchmarks._drafted import PLACES, Watched, spread
from dizzydiff.benchmarks._sampling import cfg_guider, draw, levels
from dizzydiff.benchmarks.families import Setting, measure, possible
from dizzydiff.benchmarks.networks.families import NETWORKS, unknown_families
from dizzydiff.benchmarks.networks.subject import make

KINDS = {
    "SD15": "a UNet",
    "Flux": "a transformer whose rows are apart",
    "HunyuanImage21 (distilled)": "looks its noise level up among those sampled",
    "HunyuanVideo (custom, reference)": "conditioned on a latent of one row",
    "ACEStep15": "draws random numbers for the batch",
    "LTXAV": "a latent of two parts",
    "MiniMaxH3": "takes one row at a time",
}
"""Networks of the table, and what they stand for."""


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_device() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", KINDS)
def test_a_family_is_drafted_right_or_stands_aside_in_words(name: str) -> None:
    network = NETWORKS[name]
    if not hasattr(comfy.supported_models, network.family):
        pytest.skip(f"ComfyUI {comfyui_version.__version__} has no {network.family}")
    subject = make(network)
    models = {place: spread(subject.model, place) for place in PLACES}
    setting = possible(subject, Setting("euler", 4.0, 2))
    for row in measure(subject, models, setting):
        assert not row["verdict"].startswith("plain sampling crashes"), row["verdict"]
        assert "failed" not in row, row
        assert row["verdict"] != "stands aside: without a word"


def test_every_family_of_comfyui_is_in_the_table() -> None:
    """Of the release that the pack is developed with; a newer one may know more."""
    if Version(comfyui_version.__version__) <= Version("0.30.0"):
        assert unknown_families() == []


@pytest.mark.parametrize(("mixes", "expected"), [(False, (0.0, 1e-4)), (True, (1e-2, 1.0))])
def test_a_prediction_that_sees_the_other_rows_is_noticed(mixes: bool, expected: tuple[float, float]) -> None:
    """The measurement itself, on a sampler that asks for two states in one call."""

    def asks_twice(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, **rest: Any) -> Tensor:
        model(x, sigmas[0] * x.new_ones([1]), **extra_args)
        together = torch.cat([x, 2 * x]), torch.stack([sigmas[1], sigmas[0]])
        return model(*together, **extra_args)[:1]

    subject = make(NETWORKS["Flux"])
    model = another_pack("patches").centres_rows(subject.model) if mixes else subject.model
    watched = Watched(comfy.samplers.KSAMPLER(asks_twice), None)
    guider = cfg_guider(model, subject.positive, subject.negative, 1.0)
    draw(guider, watched, levels(model, "euler", 4), subject.latent(1))
    assert watched.error is not None and expected[0] <= watched.error <= expected[1]
