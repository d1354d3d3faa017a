# SPDX-License-Identifier: GPL-3.0-or-later
"""What is seen of a graph before and while it is drafted, and when two predictions are one."""

from __future__ import annotations

import itertools
import statistics
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import pytest
import torch

from dizzydiff.drafting.backends.batch import Batch
from dizzydiff.drafting.backends.compare import compute_dtype, disagreement, rtol
from dizzydiff.drafting.backends.graph import (
    Watch,
    active_conditions,
    foreign,
    identity,
    watch,
)
from dizzydiff.drafting.backends.replicas import Replicas
from dizzydiff.students import time_embedding


class CallingTwice(comfy.samplers.CFGGuider):
    """Another node's guider."""

    def predict_noise(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().predict_noise(*args, **kwargs) + super().predict_noise(*args, **kwargs)


def model(guider: type = comfy.samplers.CFGGuider, **condition: Any) -> Any:
    """A sampler's model with the guider as a graph has it, but for its network."""
    made = guider.__new__(guider)
    made.conds, made.cfg = {"positive": [condition], "negative": [{}]}, 4.0
    made.model_patcher = SimpleNamespace(patches_uuid="one", object_patches={})
    made.inner_model = None
    return comfy.samplers.KSamplerX0Inpaint(made, torch.tensor([2.0, 1.0, 0.0]))


def test_a_batch_is_of_cores_own_guider_and_conditioning_and_the_packs_patches_alone() -> None:
    assert foreign(model(), {}) is None
    assert foreign(model(), {"wrappers": [time_embedding.fitted]}) is None
    assert "mean" in (foreign(model(), {"wrappers": [statistics.mean]}) or "")
    assert foreign(model(hooks=object()), {}) == "a hook in the conditioning"
    assert "CallingTwice" in (foreign(model(CallingTwice), {}) or "")


def test_conditions_and_each_of_their_controlnets_take_part_within_their_ranges() -> None:
    """Both ends are within, as core has it. A ControlNet has others before it."""
    first = SimpleNamespace(timestep_range=(9.0, 4.0), previous_controlnet=None)
    second = SimpleNamespace(timestep_range=None, previous_controlnet=first)
    ranged = model(timestep_start=8.0, timestep_end=2.0, control=second)
    found = [active_conditions(ranged, torch.tensor(sigma)) for sigma in (10.0, 9.0, 8.0, 4.0, 2.0, 1.0)]
    assert [seen[0] for seen in found] == [False, False, True, True, True, False]
    assert [seen[2] for seen in found] == [False, True, True, True, False, False]
    assert all(seen[1] and seen[3] for seen in found), "a ControlNet without a range, and the negative"


def test_a_verdict_is_about_one_graph_and_one_kind_of_latent() -> None:
    def patch() -> None:
        """Another than the next."""

    def other_patch() -> None:
        """Another than the one before."""

    x = torch.zeros(1, 4, 8, 8)
    without_cfg, patched, conditioned = model(), model(), model(control=1)
    without_cfg.inner_model.cfg = 1.0
    patched.inner_model.model_patcher.patches_uuid = "other"
    asked = [
        (Batch, model(), {}, x),
        (Replicas, model(), {}, x),
        (Batch, model(CallingTwice), {}, x),
        (Batch, without_cfg, {}, x),
        (Batch, patched, {}, x),
        (Batch, conditioned, {}, x),
        (Batch, model(), {"patches": [patch]}, x),
        (Batch, model(), {"patches": [other_patch]}, x),
        (Batch, model(), {}, x.repeat(2, 1, 1, 1)),
        (Batch, model(), {}, x.half()),
    ]
    keys = [identity(*each)[0] for each in asked]
    assert all(one != other for one, other in itertools.combinations(keys, 2))
    assert keys[0] == identity(Batch, model(), {}, x + 1)[0], "another picture of the same graph"


def test_what_is_filled_in_two_calls_is_trusted_and_what_goes_on_growing_is_not() -> None:
    """A cache of what does not change, such as one for cond and one for uncond."""
    cache: dict[int, float] = {}
    watched = Watch([cache], None, None, [])
    for call in range(2):
        cache[call] = 0.5
        assert watched.look() is None and watched.settling
    assert watched.look() is None and not watched.settling
    cache[2] = 0.5
    assert watched.look() is not None


def test_what_a_network_writes_into_itself_is_its_own_affair_unless_it_is_patched() -> None:
    network, sampled = torch.nn.Linear(2, 2), model()
    sampled.inner_model.inner_model = SimpleNamespace(diffusion_model=network)
    for options, seen in (({}, False), ({"wrappers": [statistics.mean]}, True)):
        network.calls = 0  # type: ignore[assignment]
        watched = watch(sampled, options, [])
        network.calls = 1  # type: ignore[assignment]
        assert bool(watched.look()) == seen


def test_a_samplers_own_hooks_may_remember() -> None:
    seen: list[int] = [0]

    def own_hook(denoised: Any) -> Any:
        seen[0] += 1
        return denoised

    for but, keeper in (([own_hook], False), ([], True)):
        watched = Watch([[own_hook]], None, None, but)
        own_hook(None)
        assert bool(watched.look()) == keeper


def test_predictions_agree_where_every_row_does() -> None:
    """A row that is off by a tenth is not made good by others. Two predictions of nothing agree."""
    other = torch.randn(1, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    one = other.clone()
    one[:, 2] *= 1.1
    assert disagreement(one, other) == pytest.approx(0.1, rel=1e-4)
    assert disagreement(other * 0, other * 0) == 0
    assert not disagreement(other * torch.nan, other) <= 1


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-3), (torch.float16, 1e-2), (torch.bfloat16, 4e-2)]
)
def test_predictions_may_differ_by_the_rounding_of_what_the_network_computes_in(
    dtype: torch.dtype, limit: float
) -> None:
    guider = SimpleNamespace(inner_model=SimpleNamespace(get_dtype_inference=lambda: dtype))
    assert rtol(compute_dtype(guider)) == limit
    assert compute_dtype(SimpleNamespace()) == torch.float32
