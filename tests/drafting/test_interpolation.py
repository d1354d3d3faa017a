# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that are skipped on one device: interpolated, checked, and never at the cost of the picture."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dizzydiff.common.sampler_trace import ModelCall
from dizzydiff.drafting.combination import Evaluation, Span
from dizzydiff.drafting.interpolation import (
    divided_difference,
    expected_deviation,
    in_between,
    interpolate,
)
from dizzydiff.drafting.policies import Policy
from dizzydiff.drafting.predictors import DRAFTS
from dizzydiff.drafting.space import Space
from dizzydiff.drafting.window import Drafting

from .samplers import SAMPLERS, Mixture, deviation, drafted, euler, karras, plainly, start

SPACE, FLOW = Space(), Space(lambda sigma: 1 - sigma)
SIGMAS = (0.9, 0.8, 0.7, 0.5)


def cubic_F(space: Space, coefficients: list[float], x: Tensor, sigma: float) -> Tensor:
    """D whose F is a cubic in sqrt(sigma), whatever x is."""
    F = sum(c * math.sqrt(sigma) ** power for power, c in enumerate(coefficients))
    return space.D_of_F(x, torch.full_like(x, F), sigma)


@pytest.mark.parametrize("space", [SPACE, FLOW])
@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.floats(0.51, 0.69))
def test_a_cubic_is_interpolated_up_to_what_is_said_to_be_missed(
    space: Space, coefficients: list[float], sigma: float
) -> None:
    span, x = Span(), torch.linspace(-1, 2, 5, dtype=torch.float64)
    states = [x * (1 + sigma) for sigma in SIGMAS]
    nodes = [
        span.evaluation(Evaluation(at, s, cubic_F(space, coefficients, at, s)[None]))
        for at, s in zip(states, SIGMAS, strict=True)
    ]
    (D,), (missed,) = interpolate(space, nodes, span.vector(x), sigma)
    (third,) = divided_difference(space, nodes)
    D, missed, third = span.evaluate([D, missed, third])
    torch.testing.assert_close(D + missed, cubic_F(space, coefficients, x, sigma), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(third, torch.full_like(x, coefficients[3]), atol=1e-6, rtol=1e-6)


def call(step: int, sigma: float, weight: float = 0.0) -> ModelCall:
    return ModelCall(step, sigma, 0, 1 - weight, denoised_coeffs=((step - 1, 0, weight),) if step else ())


CALLS = [call(0, 4.0), call(1, 2.0, 0.5), call(2, 1.0, 0.5), call(3, 0.9, 0.1)]


def test_only_a_call_that_is_alone_in_its_step_and_between_two_sigmas_can_be_left_out() -> None:
    assert [in_between(CALLS, n) for n in range(4)] == [False, True, True, False]
    assert not in_between([CALLS[0], CALLS[1], replace(CALLS[2], step=1)], 1)
    assert not in_between([CALLS[0], replace(CALLS[1], sigma=0.5), CALLS[2]], 1)


def test_what_is_expected_is_what_a_cubic_misses() -> None:
    """F = t^3 from evaluations at sigma 16, 9, 6.25 and 4: the polynomial through three of them misses the
    product of the distances.
    """
    calls = [call(0, 4.0), call(1, 2.25, 0.5), call(2, 1.0, 0.25)]
    missed, distance = expected_deviation(SPACE, calls, 1, (4.0, 3.0, 2.5, 2.0), 1.0)
    D_of_F = math.sin(math.atan(2.25))
    assert missed == pytest.approx(D_of_F * (1.0 * 0.5 * 0.5))
    assert distance == pytest.approx(0.25 * D_of_F * (1.5 * 1.0 * 0.5) / math.sqrt(2))


def skipping(model: Mixture, sigmas: Tensor, tolerance: float, k: int = 1) -> Drafting:
    """How k devices draft with Euler: the calls of the trace are those of ``drafted``."""
    x = start(sigmas, dimension=model.mu.shape[1])
    calls = drafted(euler, model, sigmas, x, paper())[1].calls
    drafts = DRAFTS["extrapolated"](False)
    skippable = frozenset(n for n in range(len(calls)) if in_between(calls, n))
    policy = Policy("verified", k, tolerance)
    return Drafting(policy, drafts, SPACE, skippable=skippable)


def paper() -> Drafting:
    return Drafting(Policy("aggressive", 2), DRAFTS["extrapolated"](False), SPACE)


@pytest.mark.parametrize(("steps", "calls"), [(28, 22), (50, 33)])
def test_one_device_makes_fewer_calls_and_stays_within_the_tolerance(steps: int, calls: int) -> None:
    model, sigmas = Mixture(64, 8, 0.15), karras(steps)
    x = start(sigmas, 4, 64)
    result, speculative = drafted(euler, model, sigmas, x, skipping(model, sigmas, 0.01))
    report = speculative.report
    assert report.evaluations == len(report.rounds) <= calls
    assert report.evaluations + report.interpolations == steps + report.rejections
    assert deviation(result, plainly(euler, model, sigmas, x)) < 0.01


@pytest.mark.parametrize(("k", "steps", "rounds"), [(2, 28, 13), (2, 50, 20), (4, 50, 13)])
def test_several_devices_take_fewer_rounds_than_any_drafts_that_are_all_evaluated(
    k: int, steps: int, rounds: int
) -> None:
    model, sigmas = Mixture(64, 8, 0.15), karras(steps)
    x = start(sigmas, 4, 64)
    result, speculative = drafted(euler, model, sigmas, x, skipping(model, sigmas, 0.01, k))
    assert len(speculative.report.rounds) <= rounds < 1 + (steps - 1) / k
    assert deviation(result, plainly(euler, model, sigmas, x)) < 0.01


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 30), st.floats(-3, -1), st.integers(8, 40))
def test_skipping_costs_three_calls_at_most_where_it_never_holds(
    frequency: float, exponent: float, steps: int
) -> None:
    """A model that changes with every sigma, as no polynomial does."""

    def model(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        return x / 4 + torch.sin(frequency * 40 * sigma.log()).reshape(-1, 1)

    sigmas = karras(steps)
    x = start(sigmas, 1, 16)
    calls = drafted(euler, Mixture(), sigmas, x, paper())[1].calls
    skippable = frozenset(n for n in range(len(calls)) if in_between(calls, n))
    policy, drafts = Policy("verified", 1, 10**exponent), DRAFTS["extrapolated"](False)
    report = drafted(euler, model, sigmas, x, Drafting(policy, drafts, SPACE, skippable=skippable))[1].report
    assert report.evaluations <= steps + 3


@settings(max_examples=12)
@given(st.floats(1e-5, 1e-1), st.integers(6, 30))
def test_no_call_that_is_left_out_is_off_by_more_than_the_tolerance(tolerance: float, steps: int) -> None:
    model, sigmas = Mixture(), karras(steps)
    report = drafted(euler, model, sigmas, start(sigmas), skipping(model, sigmas, tolerance))[1].report
    assert report.largest_deviation < 1.05 * tolerance
    assert report.evaluations <= steps + report.rejections


class Switching(Mixture):
    """Another model below sigma 2: the way to the picture has a corner there."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        D = super().__call__(x, sigma)
        return D if float(sigma[0]) > 2 else 0.5 * D


def test_a_model_that_switches_on_the_way_is_evaluated_on_both_sides() -> None:
    model, sigmas = Switching(), karras(40)
    x = start(sigmas)
    result, speculative = drafted(euler, model, sigmas, x, skipping(model, sigmas, 0.01))
    assert speculative.report.interpolations > 5
    assert deviation(result, plainly(euler, model, sigmas, x)) < 0.02


def test_nothing_is_left_out_while_the_device_says_no() -> None:
    model, sigmas = Mixture(), karras(20)
    x, how = start(sigmas), skipping(model, sigmas, 0.1)
    result, speculative = drafted(SAMPLERS["euler"], model, sigmas, x, how, drafting=False)
    assert speculative.report.evaluations == 20
    assert torch.equal(result, plainly(euler, model, sigmas, x))
