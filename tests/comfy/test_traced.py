# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids for the very sampler: its trace, replayed in the linearised model, is the sampler."""

from __future__ import annotations

import functools
import types
from typing import Any

import comfy.model_sampling
import comfy.samplers
import pytest
import torch

from dizzydiff.benchmarks._mixture import IsotropicMixture, flow, variance_exploding
from dizzydiff.common.dry_run import Untraceable
from dizzydiff.drafting.sampler import DraftRefine, Settings
from dizzydiff.stability import grids
from dizzydiff.stability.linearized import LinearizedModel, linearize
from dizzydiff.stability.measured import Measured, scheduled_grids
from dizzydiff.stability.profile import Effort, level_sigmas, measure
from dizzydiff.stability.refine import loss
from dizzydiff.stability.samplers import solver_of
from dizzydiff.stability.solvers import DPMPP_2M, EULER, HEUN, Solver

DETERMINISTIC = (
    "euler",
    "heun",
    "heunpp2",
    "exp_heun_2_x0",
    "dpm_2",
    "lms",
    "dpmpp_2m",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "gradient_estimation",
    "uni_pc",
    "uni_pc_bh2",
)
AS_EULER = ("euler", "ddim", "euler_ancestral", "euler_cfg_pp", "lcm")


@functools.cache
def sampling(of_flow: bool) -> Any:
    core = comfy.model_sampling
    kinds = (
        (core.ModelSamplingDiscreteFlow, core.CONST) if of_flow else (core.ModelSamplingDiscrete, core.EPS)
    )
    return type("Sampling", kinds, {})()


@functools.cache
def model(of_flow: bool = False) -> LinearizedModel:
    """Of six modes in 16 dimensions, measured by three probes."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(6, 16, generator=g, dtype=torch.float64)
    weights = torch.full((6,), 1 / 6, dtype=torch.float64)
    mixture = IsotropicMixture(weights, means, 0.3, flow() if of_flow else variance_exploding())
    ends = (float(getattr(sampling(of_flow), name)) for name in ("sigma_max", "sigma_min"))
    sigmas = level_sigmas(*ends, 20, of_flow)
    noise = sigmas[0] * torch.randn(3, 16, generator=g, dtype=torch.float64)

    def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return mixture.denoised(x, torch.tensor(sigma, dtype=torch.float64))

    effort = Effort(20, 3, 1)
    return linearize(measure(denoised, noise, sigmas, effort.directions, of_flow, lambda made, of: None))


def solver(name: str, of_flow: bool = False) -> Solver:
    return solver_of(comfy.samplers.sampler_object(name), sampling(of_flow))


def two_grids(of_flow: bool) -> torch.Tensor:
    core = scheduled_grids(sampling(of_flow), 6)
    pair = torch.stack([core[name].double() for name in ("simple", "beta")])
    pair[:, 0] = model(of_flow).sigmas[0]
    return pair


@pytest.mark.parametrize("of_flow", [False, True])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_replayed_trace_is_the_sampler_itself(name: str, of_flow: bool) -> None:
    """Against ComfyUI's function, run in the linearised model."""
    tables, pair = model(of_flow), two_grids(of_flow)

    class Model:
        inner_model = types.SimpleNamespace(
            model_patcher=types.SimpleNamespace(get_model_object=lambda name: sampling(of_flow)),
            inner_model=types.SimpleNamespace(model_sampling=sampling(of_flow)),
        )

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
            return tables(x.double()[None], sigma[:1].double())[0].to(x)

    single = name.startswith("uni_pc")
    sampler = comfy.samplers.sampler_object(name)
    expected = [
        sampler.sampler_function(
            Model(),
            tables.states[0].float() if single else tables.states[0].clone(),
            grid.float() if single else grid.clone(),
            extra_args={"model_options": {}, "seed": 0},
            disable=True,
            **sampler.extra_options,
        ).double()
        for grid in pair
    ]
    replayed = solver(name, of_flow).solve(tables, tables.states[:1], pair)
    off = 0.02 if single else 1e-9  # uni_pc computes in single precision, and ends at a sigma of 0.001
    torch.testing.assert_close(replayed, torch.stack(expected), rtol=0, atol=off)


@pytest.mark.parametrize("of_flow", [False, True])
def test_samplers_that_take_a_plain_solvers_steps_are_that_solver(of_flow: bool) -> None:
    """Fresh noise is no error: what samplers of order one err by is what they are off in D."""
    assert [name for name in AS_EULER if solver(name, of_flow) is not EULER] == []
    assert solver("heun", of_flow) is HEUN
    assert solver("dpmpp_2m", of_flow) is DPMPP_2M


def test_a_drafted_sampler_takes_the_steps_of_the_one_within() -> None:
    drafted = DraftRefine(comfy.samplers.sampler_object("heun"), Settings())
    assert solver_of(drafted, sampling(False)) is HEUN


def test_the_kind_of_a_sampler_is_seen_in_its_trace() -> None:
    kinds = {
        HEUN: ("dpm_2", "dpmpp_sde", "seeds_3"),
        DPMPP_2M: ("uni_pc", "res_multistep", "deis", "dpmpp_3m_sde"),
    }
    for like, names in kinds.items():
        for name in names:
            assert solver(name).like is like, name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["uni_pc", "res_multistep", "sa_solver"])
def test_a_samplers_own_grid_strays_least_from_what_was_measured(name: str) -> None:
    """No further than any of core's nine, nor than the grid of the plain solver that is most like it."""
    tables, own = model(), solver(name)
    others = list(scheduled_grids(sampling(False), 5).values())
    grid = grids.make_grid(tables, 5, own, others)
    plain = grids.make_grid(tables, 5, own.like, others)  # type: ignore[attr-defined]
    starts = [torch.cat([tables.sigmas[:1], other[1:].double()]) for other in others]
    falling = [start for start in starts if (start.diff() < 0).all() and start[-2] >= tables.sigmas[-1]]
    losses = loss(tables, torch.stack([grid, plain, *falling]), own)
    assert losses[0] <= losses[1:].min() * (1 + 1e-9)


@pytest.mark.parametrize(
    "sampler",
    [comfy.samplers.sampler_object("dpm_adaptive"), comfy.samplers.Sampler()],
    ids=["adaptive", "no function"],
)
def test_a_sampler_that_cannot_be_traced_gets_cores_sigmas(
    sampler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Untraceable):
        solver_of(sampler, sampling(False))
    sigmas = Measured(sampling(False), model(), "measured here").sigmas_of(sampler, 5, 1.0)
    torch.testing.assert_close(sigmas, comfy.samplers.calculate_sigmas(sampling(False), "simple", 5))
    assert "No stability grid for this sampler" in caplog.text


@pytest.mark.parametrize("sampler", ["euler", "deis"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_where_nothing_is_gained_core_s_grid_is_given_and_a_sentence_says_so(
    sampler: str, share: float
) -> None:
    """Of a model whose D is the same everywhere, every grid is exact."""
    levels = level_sigmas(
        *(float(getattr(sampling(False), end)) for end in ("sigma_max", "sigma_min")), 12, False
    )
    noise = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    still = measure(
        lambda x, sigma: torch.ones_like(x), levels[0] * noise, levels, 1, False, lambda done, total: None
    )
    said: list[str] = []
    measured = Measured(sampling(False), linearize(still), "measured here")
    sigmas = measured.sigmas_of(comfy.samplers.sampler_object(sampler), 7, 1.0, share, say=said.append)
    torch.testing.assert_close(sigmas, comfy.samplers.calculate_sigmas(sampling(False), "simple", 7))
    assert said == ["Nothing is gained on core's simple sigmas for this model and solver: they are used."]


def test_where_something_is_gained_no_such_sentence_is_said() -> None:
    said: list[str] = []
    Measured(sampling(False), model(), "measured here").sigmas(6, 1.0, DPMPP_2M, say=said.append)
    assert not said


def test_a_connected_sampler_decides_the_grid() -> None:
    measured = Measured(sampling(False), model(), "measured here")
    by_sampler = measured.sigmas_of(comfy.samplers.sampler_object("deis"), 5, 1.0)
    by_kind = measured.sigmas(5, 1.0, DPMPP_2M)
    assert (by_sampler.diff() < 0).all() and len(by_sampler) == 6
    assert not torch.allclose(by_sampler, by_kind, rtol=1e-3)
