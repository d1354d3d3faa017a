# SPDX-License-Identifier: GPL-3.0-or-later
"""The mixture against autograd, the closed forms of the paper, and its grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dizzydiff.benchmarks._mixture import (
    IsotropicMixture,
    Process,
    flow,
    ornstein_uhlenbeck,
    variance_exploding,
)
from dizzydiff.stability.equidistribution import cumulative, equidistribute

BETA = 5.0
PROCESSES = {"ou": (ornstein_uhlenbeck(BETA), 0.3), "ve": (variance_exploding(), 1.7), "flow": (flow(), 0.6)}


def mixture(process: Process, std: float = 0.7, modes: int = 4, d: int = 3) -> IsotropicMixture:
    g = torch.Generator().manual_seed(0)
    weights = torch.rand(modes, generator=g, dtype=torch.float64)
    return IsotropicMixture(
        weights / weights.sum(), 2 * torch.randn(modes, d, generator=g, dtype=torch.float64), std, process
    )


def points(n: int = 5, d: int = 3) -> torch.Tensor:
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(params=PROCESSES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[IsotropicMixture, torch.Tensor]:
    process, t = PROCESSES[request.param]
    return mixture(process), torch.tensor(t, dtype=torch.float64)


def test_score_is_the_gradient_of_the_log_density(case: tuple[IsotropicMixture, torch.Tensor]) -> None:
    m, t = case
    x = points().requires_grad_()
    s2 = m.variance(t)
    log_density = (m.weights.log() - torch.cdist(x, m.process.a(t) * m.means) ** 2 / (2 * s2)).logsumexp(-1)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(m.score(x.detach(), t), gradient)


def test_denoised_is_tweedies_estimate(case: tuple[IsotropicMixture, torch.Tensor]) -> None:
    m, t = case
    torch.testing.assert_close(
        m.process.a(t) * m.denoised(points(), t), points() + m.process.b2(t) * m.score(points(), t)
    )


def test_jacobian_is_the_derivative_of_the_velocity(case: tuple[IsotropicMixture, torch.Tensor]) -> None:
    m, t = case
    derivative = torch.autograd.functional.jacobian(lambda x: m.velocity(x, t).sum(0), points())
    torch.testing.assert_close(m.jacobian(points(), t), derivative.permute(1, 0, 2))


@pytest.mark.parametrize("std", [1.0, 0.5])
def test_velocity_moves_the_density(case: tuple[IsotropicMixture, torch.Tensor], std: float) -> None:
    """The continuity equation along the flow: d log p / dt = -div v, by central differences in time."""
    m, t = IsotropicMixture(case[0].weights, case[0].means, std, case[0].process), case[1]
    h = 1e-4

    def log_density(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        s2 = m.variance(at)
        gaussians = -(torch.cdist(x, m.process.a(at) * m.means) ** 2) / (2 * s2) - 1.5 * torch.log(
            2 * math.pi * s2
        )
        return (m.weights.log() + gaussians).logsumexp(-1)

    v = m.velocity(points(), t)
    along = (log_density(points() + h * v, t + h) - log_density(points() - h * v, t - h)) / (2 * h)
    torch.testing.assert_close(
        along, -m.jacobian(points(), t).diagonal(dim1=1, dim2=2).sum(-1), rtol=1e-5, atol=1e-5
    )


def test_closed_forms_of_each_process() -> None:
    x, t = points(), torch.tensor(0.3, dtype=torch.float64)
    ou, ve, rf = (mixture(process) for process in (ornstein_uhlenbeck(BETA), variance_exploding(), flow()))
    torch.testing.assert_close(ou.velocity(x, t), -BETA * (x + ou.score(x, t)))
    for m in (ve, rf):
        torch.testing.assert_close(m.velocity(x, t), (x - m.denoised(x, t)) / t)
    s2, diam2 = ou.variance(t), (ou.process.a(t) * ou.diameter) ** 2
    torch.testing.assert_close(ou.bound(t), BETA * ((1 - 1 / s2).abs() + diam2 / (4 * s2**2)))
    tau2 = 0.7**2 + t**2
    torch.testing.assert_close(ve.bound(t), t / tau2 * (1 + ve.diameter**2 / (4 * tau2)))
    torch.testing.assert_close(ve.bound(t, sharp=True), t / tau2 * max(1.0, ve.diameter**2 / (4 * tau2) - 1))
    tau2 = (1 - t) ** 2 * 0.7**2 + t**2
    torch.testing.assert_close(
        rf.bound(t), (t - (1 - t) * 0.7**2).abs() / tau2 + (1 - t) * t * rf.diameter**2 / (4 * tau2**2)
    )


def test_bounds_hold_everywhere(case: tuple[IsotropicMixture, torch.Tensor]) -> None:
    m, _ = case
    for t in torch.linspace(0.05, 0.95, 7, dtype=torch.float64):
        norm = torch.linalg.matrix_norm(m.jacobian(points(40), t), ord=2).max()
        assert norm <= m.bound(t, sharp=True) * (1 + 1e-9)
        assert m.bound(t, sharp=True) <= m.bound(t) * (1 + 1e-9)


def test_flow_map_stays_within_the_exponential_of_the_integral() -> None:
    m = mixture(ornstein_uhlenbeck(BETA), std=1.0)
    start, end, steps = 0.05, 0.4, 400
    x, y = points(8), points(8) + 1e-5
    before = (x - y).norm(dim=1)
    h = (end - start) / steps
    for i in range(steps):
        middle = torch.tensor(end - (i + 0.5) * h, dtype=torch.float64)
        x, y = (z - h * m.velocity(z - h / 2 * m.velocity(z, middle), middle) for z in (x, y))
    assert ((x - y).norm(dim=1) / before).max() <= math.exp(m.cumulative_bound(start, end))


def test_reference_grid_of_the_paper() -> None:
    g = torch.Generator().manual_seed(0)
    m = IsotropicMixture(
        torch.full((20,), 1 / 20),
        10 * torch.rand(20, 64, generator=g, dtype=torch.float64) - 5,
        1.0,
        ornstein_uhlenbeck(5.0),
    )
    reference = torch.tensor(
        [0, 0.0134, 0.0288, 0.0470, 0.0693, 0.0981, 0.1386, 0.2079, 1], dtype=torch.float64
    )
    torch.testing.assert_close(m.stability_grid(8), reference, rtol=0, atol=5e-5)


def test_integral_of_the_bound_has_its_closed_form() -> None:
    """sigma0 = 1: s = 1, so L = beta a^2 D0^2 / 4 and A = D0^2 (1 - exp(-2 beta T)) / 8."""
    m = mixture(ornstein_uhlenbeck(BETA), std=1.0)
    assert m.cumulative_bound(0, 0.6) == pytest.approx(
        m.diameter**2 * -math.expm1(-2 * BETA * 0.6) / 8, rel=1e-6
    )


@given(
    n=st.integers(1, 60),
    values=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=40),
    falling=st.booleans(),
)
def test_equidistributed_points_are_ordered_and_keep_the_ends(
    n: int, values: list[float], falling: bool
) -> None:
    x = torch.linspace(0.1, 3, len(values), dtype=torch.float64)
    x = x.flip(0) if falling else x
    y = torch.tensor(values, dtype=torch.float64)
    grid = equidistribute(x, y, n)
    assert grid[0] == x[0]
    assert grid[-1] == x[-1]
    assert ((grid.diff() < 0) if falling else (grid.diff() > 0)).all()
    assert len(grid) == n + 1


def test_equidistributed_points_of_a_constant_are_even() -> None:
    torch.testing.assert_close(
        equidistribute(torch.tensor([0.0, 0.5, 2.0]), torch.ones(3), 4),
        torch.linspace(0, 2, 5, dtype=torch.float64),
    )
    torch.testing.assert_close(
        cumulative(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 3.0, 1.0])),
        torch.tensor([0.0, 2.0, 6.0], dtype=torch.float64),
    )
