# SPDX-License-Identifier: GPL-3.0-or-later
"""Solvers, measurements and curves against models whose answers are known: linear ones."""

from __future__ import annotations

import math
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
from dizzydiff.stability.solvers import EULER, HEUN, SOLVERS, Solver

ZERO = torch.zeros(1, dtype=torch.float64)


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """D of data N(0, 1), whose trajectories are x0 sqrt(1 + sigma^2)."""
    return x / (1 + sigma.reshape(-1, 1, 1) ** 2)


def wide(table: Tensor) -> Tensor:
    return table[:, None, None]


def gaussian_table(probes: int = 3, r: int = 4) -> tuple[LinearizedModel, Tensor]:
    """The same as a measured model, exact in all of its r dimensions, and its images x0 [P, r]."""
    sigmas = torch.logspace(1, -3, TABLE_POINTS, dtype=torch.float64)
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
    model = replace(model, end=torch.tensor([[0.0], [off]], dtype=torch.float64))
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


def test_grids_of_more_than_40_steps_are_those_of_the_density() -> None:
    model, _ = gaussian_table()
    assert torch.equal(grids.make_grid(model, 41, EULER), grids.density_grid(model, 41, EULER))
