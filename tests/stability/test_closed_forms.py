# SPDX-License-Identifier: GPL-3.0-or-later
"""Solvers, measurements and curves against models whose answers are known: linear ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dizzydiff.stability import curves, grids
from dizzydiff.stability.linearized import TABLE_POINTS, LinearizedModel, interpolate, linearize
from dizzydiff.stability.profile import (
    QUICK,
    THOROUGH,
    Profile,
    coordinate,
    join,
    level_sigmas,
    measure,
    response_levels,
)
from dizzydiff.stability.refine import loss, refine
from dizzydiff.stability.solvers import DPMPP_2M, EULER, HEUN, SOLVERS, Solver

ZERO = torch.zeros(1, dtype=torch.float64)


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """D of data N(0, 1), whose trajectories are x0 sqrt(1 + sigma^2)."""
    return x / (1 + sigma.reshape(-1, 1, 1) ** 2)


def wide(table: Tensor) -> Tensor:
    return table[:, None, None]


def gaussian_table(probes: int = 3, r: int = 4, lowest: float = 1e-3) -> tuple[LinearizedModel, Tensor]:
    """The same as a measured model, exact in all of its r dimensions, and its images x0 [P, r]."""
    sigmas = torch.logspace(1, math.log10(lowest), TABLE_POINTS, dtype=torch.float64)
    x0 = torch.randn(probes, r, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tau, eye = torch.hypot(sigmas, torch.ones_like(sigmas)), torch.eye(r, dtype=torch.float64)
    responses = (eye / tau[:, None, None, None] ** 2).expand(-1, probes, -1, -1)
    length = x0.square().sum(-1).mean().sqrt()
    widths = torch.hypot(length.expand_as(sigmas), sigmas)
    return LinearizedModel(sigmas, wide(tau) * x0, x0 / wide(tau), responses, widths, x0), x0


def growing(rate: float) -> LinearizedModel:
    """dD/dx = 1 + rate everywhere about two images 0: on the way down, errors grow as sigma^-rate."""
    sigmas = torch.logspace(1, -1, TABLE_POINTS, dtype=torch.float64)
    nothing = torch.zeros(TABLE_POINTS, 2, 1, dtype=torch.float64)
    responses = torch.full((TABLE_POINTS, 2, 1, 1), 1 + rate, dtype=torch.float64)
    return LinearizedModel(sigmas, nothing, nothing, responses, torch.ones_like(sigmas), nothing[0])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_a_solver_converges_with_its_order(solver: Solver) -> None:
    """Halving the steps divides the error by 2^p."""

    def error(steps: int) -> float:
        grid = torch.cat([torch.logspace(1, -6, steps, dtype=torch.float64), ZERO])
        start = torch.full((1, 1, 1), math.hypot(1, 10), dtype=torch.float64)
        return abs(float(solver.solve(gaussian, start, grid[None])) - 1)

    assert math.log2(error(200) / error(400)) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_a_solver_keeps_its_order_where_steps_are_uneven(solver: Solver) -> None:
    """Every other step in ln sigma is twice as long."""

    def error(steps: int) -> float:
        log_sigmas = torch.tensor([0.0] + [1.0, 2.0] * (steps // 2), dtype=torch.float64).cumsum(0)
        grid = torch.cat([10 * torch.exp(-7 * math.log(10) * log_sigmas / log_sigmas[-1]), ZERO])
        start = torch.full((1, 1, 1), math.hypot(1, 10), dtype=torch.float64)
        return abs(float(solver.solve(gaussian, start, grid[None])) - 1)

    assert math.log2(error(200) / error(400)) == pytest.approx(solver.order, abs=0.15)


def test_unevenness_costs_most_where_a_step_extrapolates_the_one_before() -> None:
    assert EULER.unevenness_price == HEUN.unevenness_price < DPMPP_2M.unevenness_price


def test_efforts_cost_the_calls_that_the_node_shows() -> None:
    assert (QUICK.calls, THOROUGH.calls) == (95, 444)


@pytest.mark.parametrize("levels", [4, 5, 24])
def test_responses_are_measured_at_every_other_level_and_the_last(levels: int) -> None:
    assert response_levels(levels) == sorted({*range(0, levels, 2), levels - 1})


@given(st.floats(1e-3, 100.0), st.booleans())
def test_levels_are_even_in_the_coordinate(sigma: float, flow: bool) -> None:
    """arctan(sigma / alpha) + ln(sigma / alpha) / 4; a flow's alpha is 1 - sigma, and at least .03."""
    top = min(sigma, 1.0) if flow else sigma
    alpha = math.hypot(1 - top, 0.03) if flow else 1.0
    expected = math.atan2(top, alpha) + math.log(top / alpha) / 4
    assert float(coordinate(torch.tensor(top), flow)) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    levels = level_sigmas(top, top / 50, 9, flow)
    assert (float(levels[0]), float(levels[-1])) == (top, top / 50)
    assert (levels.diff() < 0).all()
    steps = coordinate(levels, flow).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-3, atol=0)


def linear_profile(probes: int = 3, seed: int = 0) -> tuple[Profile, Tensor, Tensor]:
    """Measured of D = A x + sigma b, A symmetric; A; and the states [calls, P, 6] that D was called at."""
    g = torch.Generator().manual_seed(1)
    A = torch.randn(6, 6, generator=g, dtype=torch.float64)
    A, b = (A + A.T) / 20, torch.randn(6, generator=g, dtype=torch.float64)
    sigmas = level_sigmas(10.0, 0.05, 9, False)
    asked: list[Tensor] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(x.flatten(1))
        return (x.flatten(1) @ A + sigma * b).reshape(x.shape)

    start = 10 * torch.randn(probes, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    profile = measure(denoise, start, sigmas, 2, False, lambda done, total: None)
    return profile, A, torch.stack(asked)


def test_the_response_of_a_linear_model_is_measured_exactly() -> None:
    """The same at every level, symmetric, with eigenvalues within those of the whole matrix."""
    profile, A, _ = linear_profile()
    assert profile.responses.shape == (3, 5, 2, 2)
    torch.testing.assert_close(profile.responses, profile.responses[:, :1].expand_as(profile.responses))
    torch.testing.assert_close(profile.responses, profile.responses.mT)
    extremes, found = torch.linalg.eigvalsh(A)[[0, -1]], torch.linalg.eigvalsh(profile.responses)
    assert (found >= extremes[0] - 1e-9).all() and (found <= extremes[1] + 1e-9).all()


def test_differences_are_taken_three_tenths_of_sigma_away_to_both_sides_in_turn() -> None:
    """After one call at each of 9 levels, one in each of 2 directions at 5 of them."""
    profile, _, called = linear_profile()
    assert profile.calls == 3 * len(called) == 3 * (9 + 2 * 5)
    torch.testing.assert_close(profile.states.norm(dim=-1).T, called[:9].norm(dim=-1))
    away = called[9::2] - called[response_levels(9)]
    sigmas = profile.sigmas[response_levels(9)]
    torch.testing.assert_close(away.norm(dim=-1), 0.3 * sigmas[:, None].expand(-1, 3))
    assert ((away[1:] * away[:-1]).sum(-1) < 0).all()


def test_probes_run_along_the_second_order_solver() -> None:
    """Of a Gaussian, through levels that are uneven in ln sigma: DPM-Solver++(2M)."""
    sigmas, measured, solved = level_sigmas(10.0, 0.05, 9, False), list[Tensor](), list[Tensor]()

    def watched(x: Tensor, sigma: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(x)
        return gaussian(x, sigma)

    start = 10 * torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    DPMPP_2M.solve(lambda x, sigma: watched(x, sigma, solved), start, torch.cat([sigmas, ZERO])[None])
    measure(
        lambda x, sigma: watched(x, torch.tensor(sigma), measured)[0],
        start[0],
        sigmas,
        0,
        False,
        lambda done, total: None,
    )
    torch.testing.assert_close(torch.stack(measured), torch.cat(solved))


def test_curvature_cancels_between_neighbouring_levels() -> None:
    """D = sigma f(x / sigma) with a root of f for a trajectory, where D' = f' and D'' = f'' / sigma. One
    difference is off by half a step times D'', to the one side and then to the other.
    """
    sigmas = level_sigmas(10.0, 0.05, 9, False)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        away = x / sigma - 1
        return sigma * (0.4 * away + 0.5 * away**2)

    start = sigmas[0].expand(2, 1)
    responses = measure(denoise, start, sigmas, 1, False, lambda done, total: None).responses.squeeze()
    inner, ends = responses[:, 1:-1], responses[:, [0, -1]]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.4))
    torch.testing.assert_close((ends - 0.4).abs(), torch.full_like(ends, 0.5 * 0.3))


def test_responses_and_states_have_the_same_axes() -> None:
    """Of D = A x that moves in a plane, both are told within the plane: D = dD/dx x there, at every level."""
    g = torch.Generator().manual_seed(4)
    plane = torch.linalg.qr(torch.randn(7, 2, generator=g, dtype=torch.float64)).Q
    A = plane @ torch.tensor([[0.5, 0.4], [-0.3, 0.2]], dtype=torch.float64) @ plane.T
    start = 10 * torch.randn(8, 7, generator=g, dtype=torch.float64)
    profile = measure(
        lambda x, sigma: x @ A.T,
        start,
        level_sigmas(10.0, 0.05, 9, False),
        2,
        False,
        lambda done, total: None,
    )
    told = profile.denoised[..., :2]
    torch.testing.assert_close(
        told, torch.einsum("pij,plj->pli", profile.responses[:, 0], profile.states[..., :2])
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {"sigmas": torch.cat([p.sigmas[:1], p.sigmas[:-1]])},
        lambda p: {"states": p.states[..., :1], "denoised": p.denoised[..., :1]},
    ],
    ids=["two levels at one sigma", "more directions than dimensions"],
)
def test_what_cannot_have_been_measured_is_no_profile(change: Callable[[Profile], dict[str, Tensor]]) -> None:
    profile = linear_profile()[0]
    with pytest.raises(ValueError, match=r"directions of|do not fall"):
        replace(profile, **change(profile))


def test_probes_measured_apart_are_one_profile() -> None:
    one, other = linear_profile(2, 0)[0], linear_profile(3, 1)[0]
    both = join([one, other])
    assert both.calls == one.calls + other.calls
    for name in ("states", "denoised", "responses"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(one, name), getattr(other, name)]))
    expected = math.sqrt((2 * one.image_length**2 + 3 * other.image_length**2) / 5)
    assert both.image_length == pytest.approx(expected)


def test_curves_of_a_gaussian_are_its_closed_forms() -> None:
    """tau^2 = 1 + sigma^2: D = x0 / tau, ||x''|| = |x0| / tau^3, and an error shrinks as tau does."""
    model, x0 = gaussian_table()
    sigma, tau = model.sigmas, torch.hypot(model.sigmas, torch.ones_like(model.sigmas))
    rms = x0.square().sum(-1).mean().sqrt()
    inner = slice(1, -1)
    torch.testing.assert_close(curves.curvature(model)[inner], (rms / tau**3)[inner], rtol=5e-3, atol=0)
    torch.testing.assert_close(curves.lipschitz(model), 1 / sigma)
    torch.testing.assert_close(curves.one_sided_lipschitz(model), -sigma / tau**2)
    torch.testing.assert_close(curves.amplification(model), 1 / tau, rtol=1e-3, atol=0)
    torch.testing.assert_close(curves.worst_amplification(model), 1 / model.widths)


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_errors_grow_where_the_response_is_above_one(rate: float) -> None:
    """As (sigma / sigma')^rate, and by 1 + rate in the last step, which is to D."""
    model = growing(rate)
    at_end = (1 + rate) * (model.sigmas / model.sigmas[-1]) ** rate
    torch.testing.assert_close(curves.amplification(model), at_end)
    torch.testing.assert_close(curves.worst_amplification(model), at_end)
    torch.testing.assert_close(curves.one_sided_lipschitz(model), rate / model.sigmas)
    torch.testing.assert_close(curves.lipschitz(model), max(rate, 1) / model.sigmas)


def test_no_error_grows_faster_than_in_the_probe_and_direction_where_it_grows_most() -> None:
    """The symmetric part of dD/dx = [[0, 4], [0, 0]] has an eigenvalue of 2. Of the other probe it is 0."""
    model = growing(0.0)
    responses = torch.zeros(TABLE_POINTS, 2, 2, 2, dtype=torch.float64)
    responses[:, 0, 0, 1] = 4
    wide_model = replace(model, states=model.states.expand(-1, -1, 2), responses=responses)
    torch.testing.assert_close(curves.one_sided_lipschitz(wide_model), 1 / model.sigmas)


def test_the_local_error_of_euler_is_that_of_one_step_from_the_exact_state() -> None:
    """D + (sigma' / sigma)(x - D) - x' with x = x0 tau, D = x0 / tau; and D - x0 in the step to 0."""
    model, x0 = gaussian_table()
    c = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    errors = curves.local_errors(model, EULER, c)
    assert errors.shape == (3, 4, *x0.shape)
    sigma = model.sigma_of(c)
    tau = torch.hypot(sigma, torch.ones_like(sigma))
    for i in range(3):
        torch.testing.assert_close(errors[i, 3], x0 * (1 / tau[i] - 1), rtol=1e-3, atol=1e-5)
        for j in range(3):
            landed = 1 / tau[i] + sigma[j] / sigma[i] * (tau[i] - 1 / tau[i])
            expected = x0 * (landed - tau[j]) if j > i else torch.zeros_like(x0)
            torch.testing.assert_close(errors[i, j], expected, rtol=1e-3, atol=1e-5)


def test_the_curve_of_local_errors_is_of_steps_of_one_part_of_the_way() -> None:
    model, _ = gaussian_table()
    curve, c = curves.local_error(model, HEUN, 10), torch.linspace(0, 1, TABLE_POINTS, dtype=torch.float64)
    for i in (0, 100, 400):
        step = curves.step_errors(
            model, HEUN, c[i : i + 1], c[i : i + 1] + 0.1, torch.full((1,), 0.1).double()
        )
        assert float(curve[i]) == pytest.approx(float(step.square().sum(-1).mean().sqrt()))
    assert (curve[-52:] > 0).all(), "the last steps, which are shorter, have a length too"


def test_a_measured_model_answers_as_the_model_near_its_trajectories_and_beside_them() -> None:
    model, _ = gaussian_table()
    x = model.states[:1] * 1.5
    c = torch.tensor([0.37], dtype=torch.float64)
    sigma = model.sigma_of(c)
    torch.testing.assert_close(model.c_of(sigma), c)
    torch.testing.assert_close(model(x, sigma), gaussian(x, sigma), rtol=1e-4, atol=1e-4)
    off = model.deviation(2 * interpolate(model.states, c), sigma)
    torch.testing.assert_close(off, interpolate(model.states, c) / interpolate(model.widths, c))
    outside = torch.tensor([1e3, 1e-9], dtype=torch.float64)
    assert model.c_of(outside).tolist() == [0, 1], "clipped to what was measured"


@pytest.mark.parametrize("flow", [False, True])
def test_states_are_as_wide_as_the_images_at_their_signal_and_the_noise(flow: bool) -> None:
    """sqrt((alpha R)^2 + sigma^2), R the RMS length of images: what a state is another image by."""
    profile = linear_profile()[0]
    sigmas = profile.sigmas / 10 if flow else profile.sigmas
    profile = Profile(sigmas, profile.states, profile.denoised, profile.responses, flow, profile.calls)
    model = linearize(profile)
    alpha = 1 - model.sigmas if flow else torch.ones_like(model.sigmas)
    torch.testing.assert_close(model.widths**2, (alpha * profile.image_length) ** 2 + model.sigmas**2)
    assert (float(model.sigmas[0]), float(model.sigmas[-1])) == pytest.approx(
        (float(sigmas[0]), float(sigmas[-1]))
    )


@pytest.mark.parametrize("off", [0.1, 1.0, 1000.0])
def test_the_loss_of_a_probe_is_bounded_by_one(off: float) -> None:
    """l / sqrt(1 + l^2), l^2 = 2.5 off^2 for one of two images that a solver misses by so many widths."""
    model = growing(0.0)
    end = torch.tensor([[0.0], [2 * off]], dtype=torch.float64)
    model = replace(model, end=end, widths=torch.full_like(model.widths, 2))
    even = torch.cat([torch.logspace(1, -1, 9, dtype=torch.float64)[:-1], ZERO])
    expected = math.sqrt(2.5) * off / math.hypot(1, math.sqrt(2.5) * off) / 2
    assert float(loss(model, even[None], EULER)) == pytest.approx(expected, abs=1e-6)


def test_uneven_steps_have_the_price_of_the_solver() -> None:
    """On a model that no step is wrong of: the squared second differences of log step lengths."""
    model = growing(0.0)
    widths = [1.0, 2.0, 2.0, 1.0, 2.0]
    c = torch.tensor([0.0, *torch.tensor(widths).cumsum(0)[:-1].tolist()], dtype=torch.float64) / sum(widths)
    grid = torch.cat([model.sigma_of(c), ZERO])
    for price in (0.0, 0.01, 0.5):
        solver = Solver("another", EULER.step, order=1, memory=0, unevenness_price=price)
        bends = [-1, -1, 2]
        expected = price * sum((bend * math.log(2)) ** 2 for bend in bends)
        assert float(loss(model, grid[None], solver)) == pytest.approx(expected, abs=1e-6)


def test_a_grid_that_ends_at_the_lowest_measured_level_has_a_loss_too() -> None:
    """Though the step from there to the end of what was measured has no length."""
    grid = torch.cat([torch.logspace(1, -1, 6, dtype=torch.float64), ZERO])
    assert 0 <= float(loss(growing(0.0), grid[None], EULER)) < 2


def test_a_grid_on_which_errors_overflow_has_the_greatest_loss() -> None:
    """1, where every probe is lost, and not none, which would be taken for the least."""
    model, _ = gaussian_table()
    explosive = replace(model, responses=1e200 * model.responses)
    even = torch.cat([torch.logspace(1, -2, 6, dtype=torch.float64), ZERO])
    assert float(loss(explosive, even[None], replace(EULER, unevenness_price=0.0))) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_a_grid_that_is_not_refined_is_no_worse_either(seed: int) -> None:
    """Points nearer than a refined grid may have them."""
    model, _ = gaussian_table()
    free = replace(EULER, unevenness_price=0.0)
    c = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort().values
    grid = torch.cat([model.sigma_of(torch.cat([ZERO, c, c[-1:] + 1e-6])), ZERO])
    kept = refine(model, grid, free, iterations=0)
    assert float(loss(model, kept[None], free)) <= float(loss(model, grid[None], free))


@pytest.mark.parametrize("price", [0.1, 0.3])
def test_a_refined_grid_is_a_minimum_of_the_loss(price: float) -> None:
    """No point moved by some hundredths of the step before it lessens the loss by a thousandth."""
    model, _ = gaussian_table()
    solver = replace(EULER, unevenness_price=price)
    grid = refine(model, grids.density_grid(model, 6, solver), solver)
    least, c = float(loss(model, grid[None], solver)), model.c_of(grid[:-1])
    for i in range(1, 6):
        for way in (-0.03, 0.03):
            moved = c.clone()
            moved[i] += way * float(c[i] - c[i - 1])
            other = torch.cat([model.sigma_of(moved), ZERO])
            assert float(loss(model, other[None], solver)) > 0.999 * least


@settings(max_examples=6)
@given(st.integers(1, 4), st.sampled_from(list(SOLVERS.values())), st.integers(0, 99))
def test_refining_never_makes_a_grid_worse(steps: int, solver: Solver, seed: int) -> None:
    model, _ = gaussian_table()
    g = torch.Generator().manual_seed(seed)
    c = torch.rand(steps - 1, generator=g, dtype=torch.float64).sort().values
    grid = torch.cat([model.sigma_of(torch.cat([ZERO, c])), ZERO])
    refined = refine(model, grid, solver)
    assert float(loss(model, refined[None], solver)) <= float(loss(model, grid[None], solver))
    assert refined[0] == pytest.approx(10.0) and refined[-1] == 0 and (refined.diff() < 0).all()


def test_refinement_starts_from_the_grids_it_is_given_where_they_are_of_its_length_and_end_in_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen with a refinement that leaves its starts as they are: the best of all is what comes out."""
    model, _ = gaussian_table()
    best = grids.make_grid(model, 4, EULER)
    monkeypatch.setattr(grids, "refine", lambda model, grid, solver: grid)
    own = grids.make_grid(model, 4, EULER)
    assert loss(model, best[None], EULER) < loss(model, own[None], EULER)
    torch.testing.assert_close(grids.make_grid(model, 4, EULER, [best]), best)
    above = torch.cat([best[:-1], best[-2:-1] / 2])
    assert torch.equal(grids.make_grid(model, 4, EULER, [best[1:], above]), own)


def test_no_grid_goes_below_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though one that is given and does seems the better."""
    model, _ = gaussian_table(lowest=3.0)
    best = grids.make_grid(model, 4, EULER)
    monkeypatch.setattr(grids, "refine", lambda model, grid, solver: grid)
    own = grids.make_grid(model, 4, EULER)
    below = torch.cat([best[:-2], best.new_tensor([2.97, 0.0])])
    assert float(loss(model, below[None], EULER)) < float(loss(model, own[None], EULER))
    assert torch.equal(grids.make_grid(model, 4, EULER, [below]), own)


def test_grids_of_more_than_40_steps_are_those_of_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = gaussian_table()
    refined: list[int] = []
    monkeypatch.setattr(grids, "refine", lambda model, grid, solver: refined.append(len(grid) - 1) or grid)
    assert torch.equal(grids.make_grid(model, 41, EULER), grids.density_grid(model, 41, EULER))
    assert not refined
    grids.make_grid(model, 40, EULER)
    assert set(refined) == {40}
