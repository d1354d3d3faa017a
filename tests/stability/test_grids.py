# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles measured of mixtures, against their closed forms; and the grids made from them."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dizzydiff.benchmarks._mixture import IsotropicMixture, flow, variance_exploding
from dizzydiff.benchmarks.stability import equal_stability_grid
from dizzydiff.common.alpha import alpha_ve
from dizzydiff.stability import curves, grids
from dizzydiff.stability.equidistribution import cumulative
from dizzydiff.stability.errors import BadBlend, BadSteps, CannotMeasure
from dizzydiff.stability.linearized import TABLE_POINTS, LinearizedModel, interpolate, linearize
from dizzydiff.stability.profile import Effort, Profile, level_sigmas, measure
from dizzydiff.stability.refine import loss, refine
from dizzydiff.stability.solvers import DPMPP_2M, EULER, HEUN, SOLVERS, History, Model, Solver
from dizzydiff.stability.traced import TracedSolver

SIGMA_MAX, SIGMA_MIN, D = 14.6, 0.03, 16
EFFORT = Effort(levels=20, probes=6, directions=2)


def mixture(modes: int = 6, std: float = 0.3, of_flow: bool = False) -> IsotropicMixture:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(modes, D, generator=g, dtype=torch.float64)
    return IsotropicMixture(
        torch.full((modes,), 1 / modes, dtype=torch.float64),
        means,
        std,
        flow() if of_flow else variance_exploding(),
    )


def model_of(m: IsotropicMixture) -> Model:
    return lambda x, sigma: m.denoised(x[0], sigma[0])[None]


def profile_of(m: IsotropicMixture, effort: Effort = EFFORT, of_flow: bool = False, seed: int = 1) -> Profile:
    sigmas = level_sigmas(1.0 if of_flow else SIGMA_MAX, SIGMA_MIN, effort.levels, of_flow)
    noise = torch.randn(effort.probes, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    calls: list[tuple[int, int]] = []
    profile = measure(
        lambda x, sigma: m.denoised(x, torch.tensor(sigma, dtype=torch.float64)),
        noise * sigmas[0],
        sigmas,
        effort.directions,
        of_flow,
        lambda done, total: calls.append((done, total)),
    )
    assert profile.calls == effort.calls == effort.probes * len(calls)
    assert [done for done, _ in calls] == list(range(1, calls[0][1] + 1))
    return profile


@functools.cache
def linearized(of_flow: bool = False) -> LinearizedModel:
    return linearize(profile_of(mixture(of_flow=of_flow), of_flow=of_flow))


def test_quick_and_thorough_efforts_count_their_calls() -> None:
    assert Effort(levels=24, probes=8, directions=2).calls == 8 * (24 + 2 * 13)


def test_single_gaussian_has_the_closed_forms() -> None:
    """N(0, s0^2): D = x s0^2 / tau^2, so dD/dx, ||J||, growth and amplification are known at every sigma."""
    m = IsotropicMixture(
        torch.ones(1, dtype=torch.float64), torch.zeros(1, D, dtype=torch.float64), 1.0, variance_exploding()
    )
    r = linearize(profile_of(m, Effort(28, 4, 2)))
    middle = slice(40, -40)
    sigma = r.sigmas[middle]
    tau2 = 1 + sigma**2
    response = r.responses[middle].diagonal(dim1=-2, dim2=-1).mean((1, 2))
    torch.testing.assert_close(response, 1 / tau2, rtol=0.1, atol=0.02)
    torch.testing.assert_close(
        curves.one_sided_lipschitz(r)[middle] * sigma, 1 / tau2 - 1, rtol=0.1, atol=0.03
    )
    torch.testing.assert_close(curves.amplification(r)[middle], 1 / tau2.sqrt(), rtol=0.1, atol=0.02)
    torch.testing.assert_close(
        r.states[middle].norm(dim=-1) / tau2.sqrt()[:, None],
        r.end.norm(dim=-1).expand(len(sigma), -1),
        rtol=0.02,
        atol=0.02,
    )


def test_replay_ends_where_the_model_does() -> None:
    m = mixture()
    noise = torch.randn(6, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * SIGMA_MAX
    sigmas = torch.cat([level_sigmas(SIGMA_MAX, SIGMA_MIN, 60, False), torch.zeros(1, dtype=torch.float64)])
    end = DPMPP_2M.solve(model_of(m), noise[None], sigmas[None])[0]
    torch.testing.assert_close(linearized().end.norm(dim=-1), end.norm(dim=-1), rtol=0.05, atol=0)
    assert torch.equal(linearized().end, linearized().denoised[-1]), "the last step is to D"


def test_replay_follows_the_models_trajectories_and_not_the_errors_of_the_measuring() -> None:
    """The first step between measured levels is Euler's: its error must not count as right, or grids would
    repeat it.
    """
    m, levels = mixture(modes=40, std=0.1), level_sigmas(SIGMA_MAX, SIGMA_MIN, EFFORT.levels, False)
    profile = profile_of(m)
    start = (
        torch.randn(EFFORT.probes, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        * SIGMA_MAX
    )
    fine = torch.cat(
        [level_sigmas(SIGMA_MAX, float(levels[2]), 300, False), torch.zeros(1, dtype=torch.float64)]
    )
    exact: list[torch.Tensor] = []

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        exact.append(x[0])
        return model_of(m)(x, sigma)

    DPMPP_2M.solve(model, start[None], fine[None])
    r = linearize(profile)
    replayed_length = interpolate(r.states, r.c_of(levels[2:3]))[0].norm(dim=-1)
    measured_length = profile.states[:, 2].norm(dim=-1)
    off, was_off = (
        (length - exact[-1].norm(dim=-1)).abs().mean() for length in (replayed_length, measured_length)
    )
    assert off < 0.3 * was_off


@pytest.mark.parametrize(("probes", "growth"), [(1, 3.0), (2, 30.0)])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_probes_on_a_border_do_not_decide_the_grid(solver: Solver, probes: int, growth: float) -> None:
    """Probes in which errors grow by many times e on the way: the others' grid gains nothing by serving those
    alone.
    """
    r = linearized()
    responses = r.responses.clone()
    responses[TABLE_POINTS // 4 : TABLE_POINTS // 2, :probes] += growth * torch.eye(
        responses.shape[-1], dtype=torch.float64
    )
    wild = replace(r, responses=responses)
    calm, beside = grids.make_grid(r, 8, solver), grids.make_grid(wild, 8, solver)
    states, denoised, kept = (table[:, probes:] for table in (r.states, r.denoised, r.responses))
    others = replace(r, states=states, denoised=denoised, responses=kept, end=r.end[probes:])
    assert loss(others, beside[None], solver) < 1.5 * loss(others, calm[None], solver)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_replayed_solver_error_is_that_of_the_model(solver: Solver) -> None:
    """Away from modes' borders, where a linear model holds: one wide Gaussian."""
    m = IsotropicMixture(
        torch.ones(1, dtype=torch.float64), torch.ones(1, D, dtype=torch.float64), 1.0, variance_exploding()
    )
    r = linearize(profile_of(m, Effort(28, 4, 2)))
    grid = torch.cat([level_sigmas(SIGMA_MAX, 0.1, 8, False), torch.zeros(1, dtype=torch.float64)])
    start = torch.randn(4, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * SIGMA_MAX
    exact = 1 + (start - 1) / (1 + SIGMA_MAX**2) ** 0.5
    error = (solver.solve(model_of(m), start[None], grid[None])[0] - exact).norm(dim=-1)
    replayed_error = (solver.solve(r, r.states[:1], grid[None])[0] - r.end).norm(dim=-1)
    torch.testing.assert_close(replayed_error, error, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("of_flow", [False, True])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_refining_lessens_the_loss(solver: Solver, of_flow: bool) -> None:
    r = linearized(of_flow)
    start = grids.density_grid(r, 8, solver)
    better = refine(r, start, solver)
    assert loss(r, better[None], solver) < 0.95 * loss(r, start[None], solver)
    made = grids.make_grid(r, 8, solver)
    assert loss(r, made[None], solver) < 0.95 * loss(r, start[None], solver)


def test_refined_grid_beats_karras_on_the_model_itself() -> None:
    """Images of other seeds than the probes', against a converged solution."""
    m, steps = mixture(), 8
    model = model_of(m)
    start = (
        torch.randn(256, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)[None] * SIGMA_MAX
    )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    karras = (SIGMA_MAX ** (1 / 7) + ramp * (SIGMA_MIN ** (1 / 7) - SIGMA_MAX ** (1 / 7))) ** 7
    zero = torch.zeros(1, dtype=torch.float64)
    fine = torch.cat([level_sigmas(SIGMA_MAX, SIGMA_MIN, 150, False), zero])
    reference = DPMPP_2M.solve(model, start, fine[None])
    errors = [
        (EULER.solve(model, start, grid[None]) - reference).square().sum()
        for grid in (grids.make_grid(linearized(), steps, EULER), torch.cat([karras, zero]))
    ]
    assert errors[0] < errors[1]


def refined_where_short(r: LinearizedModel, n: int, solver: Solver) -> torch.Tensor:
    """Refinement of long grids takes seconds, and moves the points of the density."""
    return grids.make_grid(r, n, solver) if n <= 6 else grids.density_grid(r, n, solver)


METHODS = {
    "refined": refined_where_short,
    "density": grids.density_grid,
    "cheapest path": grids.cheapest_grid,
    "curvature": lambda r, n, solver: grids.curvature_grid(r, n),
    "equal stability": lambda r, n, solver: equal_stability_grid(r, n),
}


@settings(max_examples=12)
@given(
    steps=st.integers(1, 48),
    method=st.sampled_from(sorted(METHODS)),
    solver=st.sampled_from(list(SOLVERS.values())),
    of_flow=st.booleans(),
    denoise=st.sampled_from([1.0, 0.6, 0.05]),
)
def test_every_grid_falls_strictly_from_the_model_to_zero(
    steps: int, method: str, solver: Solver, of_flow: bool, denoise: float
) -> None:
    r = linearized(of_flow)
    grid = grids.for_denoise(lambda n: METHODS[method](r, n, solver), steps, denoise)
    assert len(grid) == steps + 1
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    assert grid[0] <= r.sigmas[0] * (1 + 1e-9)
    if denoise == 1:
        assert grid[0] == pytest.approx(float(r.sigmas[0]))
    assert grid[-2] >= r.sigmas[-1] * (1 - 1e-9)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_a_solvers_error_is_its_own_under_any_name(solver: Solver) -> None:
    """Order and memory are the solver's, not its name's."""
    r, other = linearized(), replace(solver, name="another")
    c = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert torch.equal(curves.local_error(r, other), curves.local_error(r, solver))
    assert torch.equal(curves.local_errors(r, other, c), curves.local_errors(r, solver, c))
    assert torch.equal(grids.density_grid(r, 5, other), grids.density_grid(r, 5, solver))


def test_a_solver_is_handed_the_steps_that_it_says_it_remembers() -> None:
    """Two here: exact ones for its local error, its own when it solves."""
    handed: list[list[tuple[float, torch.Tensor]]] = []

    def step(
        model: Model, x: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor, history: History
    ) -> tuple[torch.Tensor, torch.Tensor]:
        handed.append([(float(past[0]), D[0]) for past, D in history])
        return EULER.step(model, x, sigma, sigma_next, history)

    r, solver = linearized(), Solver("spy", step, order=1, memory=2, unevenness_price=0.0)
    c, h = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    curves.step_errors(r, solver, c, c + h, h)
    ((one, D_one), (two, D_two)) = handed.pop()
    assert (one, two) == pytest.approx([float(r.sigma_of(c - n * h)) for n in (1, 2)])
    torch.testing.assert_close(D_one, interpolate(r.denoised, c - h)[0])
    torch.testing.assert_close(D_two, interpolate(r.denoised, c - 2 * h)[0])
    solver.solve(r, r.states[:1], torch.tensor([[8.0, 4.0, 2.0, 1.0, 0.5, 0.0]], dtype=torch.float64))
    assert [[sigma for sigma, _ in history] for history in handed] == [[], [8], [4, 8], [2, 4]]


def test_nothing_is_denoised_at_denoise_0_and_no_steps_are_refused() -> None:
    assert len(grids.for_denoise(lambda n: torch.zeros(n + 1), 8, 0.0)) == 0
    with pytest.raises(BadSteps, match="at least 1"):
        grids.make_grid(linearized(), 0, EULER)


def test_blend_goes_from_one_grid_to_the_other() -> None:
    first, second = torch.tensor([8.0, 4.0, 0.0]).double(), torch.tensor([8.0, 1.0, 0.0]).double()
    torch.testing.assert_close(grids.blend(first, second, 0.0), first)
    torch.testing.assert_close(grids.blend(first, second, 1.0), second)
    torch.testing.assert_close(grids.blend(first, second, 0.5), torch.tensor([8.0, 2.0, 0.0]).double())
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadBlend, match="from 0 to 1"):
            grids.blend(first, second, share)


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=lambda s: s.name)
def test_nothing_is_gained_where_no_grid_makes_an_error(solver: Solver, probes: int) -> None:
    """D that is the same everywhere, as of a single image: every grid ends there exactly."""
    sigmas = level_sigmas(SIGMA_MAX, SIGMA_MIN, 12, False)
    noise = torch.randn(probes, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    profile = measure(
        lambda x, sigma: torch.ones_like(x), SIGMA_MAX * noise, sigmas, 1, False, lambda done, total: None
    )
    still = linearize(profile)
    even = grids.end_in_zero(torch.linspace(SIGMA_MAX, 0, 7, dtype=torch.float64))
    assert not grids.gains(still, grids.make_grid(still, 6, solver, [even]), even, solver)


def test_what_is_gained_counts_beyond_its_standard_error_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three probes that stray 0.2 less on the grid: a standard error of 0.06, then of 0.23."""
    r = linearized()
    made = grids.make_grid(r, 8, EULER)
    even = grids.end_in_zero(torch.linspace(SIGMA_MAX, 0, 9, dtype=torch.float64))
    assert grids.gains(r, made, even, EULER)
    assert not grids.gains(r, even, made, EULER)
    for spread, gained in ((0.1, True), (0.4, False)):
        far = torch.tensor([[0.5] * 3, [0.7 - spread, 0.7, 0.7 + spread]], dtype=torch.float64)
        monkeypatch.setattr(grids, "strays", lambda model, both, solver, far=far: far)
        assert grids.gains(r, made, even, EULER) is gained


def test_all_is_gained_on_what_is_no_grid_of_so_many_steps() -> None:
    r = linearized()
    poor = grids.end_in_zero(torch.linspace(SIGMA_MAX, 0, 9, dtype=torch.float64))
    assert grids.gains(r, poor, grids.make_grid(r, 5, EULER), EULER)


def test_dynamic_programming_finds_the_cheapest_path() -> None:
    """Against all paths of three steps over five levels."""
    paths = [(i, j) for i in range(1, 4) for j in range(i + 1, 5)]

    def price(cost: torch.Tensor, path: tuple[int, int], factor: float) -> float:
        return float(cost[0, path[0]] + factor * (cost[path] + factor * cost[path[1], 5]))

    for seed, factor in itertools.product(range(10), (1.0, 1.15, 3.0)):
        cost = torch.rand(5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        best = min(paths, key=functools.partial(price, cost, factor=factor))
        assert grids.cheapest_path(cost, 3, factor).tolist() == [0, *best]


def in_equal_parts(points: torch.Tensor, density: torch.Tensor, grid: torch.Tensor) -> None:
    """The density's integrals over a grid's steps; the last, to 0, is to the end of the points."""
    A, way = cumulative(points, density).numpy(), 1 if points[-1] > points[0] else -1
    at = np.interp(grid[:-1].numpy(), points.numpy()[::way], A[::way])
    np.testing.assert_allclose(np.diff(at, append=A[-1]), A[-1] / (len(grid) - 1), rtol=1e-6)


def fading(r: LinearizedModel) -> LinearizedModel:
    """The same with predictions that stay as they are in the lower half, where no step is wrong."""
    half = TABLE_POINTS // 2
    denoised, slope = r.denoised.clone(), (r.states[half] - r.denoised[half]) / r.sigmas[half]
    denoised[half:] = r.denoised[half]
    states = r.states.clone()
    states[half:] = r.denoised[half] + r.sigmas[half:, None, None] * slope
    return replace(r, states=states, denoised=denoised, end=denoised[-1])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
@pytest.mark.parametrize("fades", [False, True])
def test_density_grids_have_equal_parts_of_what_errors_become(solver: Solver, fades: bool) -> None:
    """To the power of 1 / (p + 1); where that is hardly measurable, a thousandth of what is most."""
    r = fading(linearized()) if fades else linearized()
    weighted = curves.worst_amplification(r) * curves.local_error(r, solver)
    rho = weighted.clamp(min=1e-3 * float(weighted.max())) ** (1 / (solver.order + 1))
    grid, c = grids.density_grid(r, 7, solver), torch.linspace(0, 1, TABLE_POINTS, dtype=torch.float64)
    in_equal_parts(c, rho, torch.cat([r.c_of(grid[:-1]), c[-1:]]))


@pytest.mark.parametrize("fades", [False, True])
def test_curvature_grids_have_equal_parts_of_the_root_of_the_curvature(fades: bool) -> None:
    r = fading(linearized()) if fades else linearized()
    curvature = curves.curvature(r)
    rho = curvature.clamp(min=1e-3 * float(curvature.max())).sqrt()
    in_equal_parts(r.sigmas, rho, grids.curvature_grid(r, 7))


def test_on_the_cheapest_path_no_level_has_a_cheaper_neighbour() -> None:
    """Of 61 levels, by error times what it grows to, which is much for those of the second quarter."""
    r, c = linearized(), torch.linspace(0, 1, 61, dtype=torch.float64)
    responses = r.responses.clone()
    responses[TABLE_POINTS // 4 : TABLE_POINTS // 2] += 3 * torch.eye(r.responses.shape[-1]).double()
    r = replace(r, responses=responses)
    e = curves.local_errors(r, EULER, c).square().sum(-1).mean(-1).sqrt()
    phi = curves.worst_amplification(r)[(c * (TABLE_POINTS - 1)).round().long()]
    cost = e * torch.cat([phi, 1 / r.widths[-1:]])

    def price(path: list[int]) -> float:
        return float(sum(cost[i, j] for i, j in itertools.pairwise([*path, 61])))

    path = (60 * r.c_of(grids.cheapest_grid(r, 6, EULER)[:-1])).round().long().tolist()
    others = [
        [*path[:n], path[n] + way, *path[n + 1 :]]
        for n, way in itertools.product(range(1, 6), (-1, 1))
        if path[n] + way not in (*path, 61)
    ]
    assert others and min(map(price, others)) >= price(path)


def test_a_traced_sampler_may_start_between_the_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """It steps as Heun's and looks like Euler's. The grid given lies as far beyond its best as that beyond
    Euler's.
    """
    r = linearized()

    class Traced(TracedSolver):
        def solve(self, model: Model, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
            return HEUN.solve(model, x, sigmas)

    solver = Traced("traced", EULER.step, 1, 0, HEUN.unevenness_price, EULER, lambda sigmas: None, alpha_ve)  # type: ignore
    best = grids.make_grid(r, 6, HEUN)
    monkeypatch.setattr(grids, "refine", lambda model, grid, solver, iterations=0: grid)
    own = grids.make_grid(r, 6, EULER)
    beyond = torch.cat([best[:-1] ** 2 / own[:-1], own[-1:]])
    assert loss(r, best[None], solver) < loss(r, torch.stack([own, beyond]), solver).min()
    torch.testing.assert_close(grids.make_grid(r, 6, solver, [beyond]), best)


def test_equal_stability_grid_has_equal_parts_of_the_measured_norm() -> None:
    r = linearized()
    grid = equal_stability_grid(r, 5)
    A = cumulative(r.sigmas, curves.lipschitz(r))
    at_grid = torch.tensor([float(A[(r.sigmas - sigma).abs().argmin()]) for sigma in grid[:-1]])
    torch.testing.assert_close(at_grid.diff(), (A[-1] / 5).float().expand(4), rtol=0.05, atol=0)


def test_model_that_answers_with_nan_cannot_be_measured() -> None:
    with pytest.raises(CannotMeasure, match="not finite"):
        measure(
            lambda x, sigma: x * float("nan"),
            torch.ones(2, D),
            level_sigmas(14.6, 0.03, 8, False),
            1,
            False,
            lambda done, total: None,
        )


@given(st.integers(1, 30))
@settings(deadline=None, max_examples=20)
def test_the_grid_of_a_flow_model_lies_half_way_to_cores(steps: int) -> None:
    grid, base = (torch.cat([torch.logspace(0, low, steps), torch.zeros(1)]).double() for low in (-3, -1))
    half = grids.hedged(grid, base, flow=True)
    torch.testing.assert_close(half[:-1].square(), grid[:-1] * base[:-1])
    assert float(half[-1]) == 0 and torch.equal(grids.hedged(grid, base, flow=False), grid)
