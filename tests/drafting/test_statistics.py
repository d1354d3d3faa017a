# SPDX-License-Identifier: GPL-3.0-or-later
"""What a round tells, against what happens afterwards."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dizzydiff.common.sampler_trace import ModelCall, trace
from dizzydiff.drafting.combination import Combination, Evaluation, Span
from dizzydiff.drafting.policies import Policy
from dizzydiff.drafting.predictors import DRAFTS
from dizzydiff.drafting.space import Space
from dizzydiff.drafting.speculation import SpeculativeModel
from dizzydiff.drafting.statistics import MIN_LIPSCHITZ, Pair, RoundStatistics, secant_error
from dizzydiff.drafting.window import Drafting

from .samplers import SAMPLERS, Mixture, StandIn, drafted, euler, karras, start

SPACE = Space()


class Watched(SpeculativeModel):
    """Keeps, for every model call drafted that the sampler came to: what was found, and how far it was from
    the draft in truth.
    """

    def _from_window(self, n: int, x: Tensor) -> Evaluation | None:
        if (draft := self._window.get(n)) is not None and draft.x is not x:
            distance = float((x - draft.x).square().mean().sqrt()) / SPACE.scale(draft.sigma)
            self.__dict__.setdefault("seen", []).append((n, self._statistics, distance))
        return super()._from_window(n, x)


@functools.cache
def calls_of_euler(steps: int) -> tuple[ModelCall, ...]:
    return trace(
        euler,
        lambda predict: StandIn(Mixture(), lambda x, sigma, **_: predict(x, sigma)[0]),
        karras(steps),
        1,
    ).calls


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-2, 1e-1])
def test_the_trace_says_where_the_sampler_arrives(name: str, tolerance: float) -> None:
    sigmas = karras(24)
    how = Drafting(Policy("verified", 5, tolerance), DRAFTS["extrapolated"](name == "ancestral"), SPACE)
    _, speculative = drafted(SAMPLERS[name], Mixture(), sigmas, start(sigmas, 1), how, Watched)
    assert len(speculative.seen) > 10
    for n, found, distance in speculative.seen:
        assert found.distance(n) == pytest.approx(distance, rel=1e-6, abs=1e-9)


@given(st.floats(-0.3, 0.9))
def test_the_secant_finds_the_slope_of_a_model_that_is_linear_in_its_state(true_slope: float) -> None:
    """Its guesses are off, since it jumps from sigma to sigma."""

    def model(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        return true_slope * x + torch.sin(9 * sigma)[:, None]

    sigmas = karras(20, top=3.0)
    how = Drafting(Policy("verified", 4, 0.05), DRAFTS["extrapolated"](False), SPACE)
    _, speculative = drafted(euler, model, sigmas, start(sigmas, 1), how, Watched)
    slopes = [found.dD_dx(n) for n, found, _ in speculative.seen if n in found.pairs]
    assert slopes and slopes == pytest.approx([true_slope] * len(slopes), abs=1e-6)
    for found in [found for _, found, _ in speculative.seen if found.pairs]:
        sigma = found.calls[min(found.pairs)].sigma
        off = abs(true_slope - SPACE.gaussian_slope(sigma)) * SPACE.scale(sigma)
        assert found.lipschitz_elsewhere() == pytest.approx(off, abs=1e-6), (
            "by what the last dropped draft was off"
        )


@given(st.floats(0, math.pi / 2), st.floats(0.05, 3), st.floats(0.3, 2))
def test_drafts_are_as_rough_along_a_pair_as_its_secant_missed_and_across_as_the_last(
    angle: float, missed: float, last: float
) -> None:
    """Three directions: of the pair's states, of what its secant misses, and across."""
    along, off, across = torch.eye(3, dtype=torch.float64)
    wrong = math.cos(angle) * along + math.sin(angle) * across
    sigmas = karras(4)
    calls = calls_of_euler(4)
    span = Span()
    gram = span.gram([span.vector(vector) for vector in (along, 0.4 * along + missed * off, wrong)])
    found = RoundStatistics(
        SPACE,
        "F",
        calls,
        lambda: 1,
        lambda: last,
        (3,),
        gram,
        {0: (Combination({2: 1.0}),)},
        {1: Pair(Combination({0: 1.0}), (Combination({1: 1.0}),))},
    )
    assert found.dD_dx(1) == pytest.approx(0.4)
    missed *= SPACE.scale(calls[1].sigma)
    assert found.lipschitz(1) == pytest.approx(
        max(math.hypot(math.cos(angle) * missed, math.sin(angle) * last), MIN_LIPSCHITZ)
    )
    step = float(1 - sigmas[1] / sigmas[0])
    assert found.distance(1) == pytest.approx(step / math.sqrt(3) / SPACE.scale(calls[1].sigma))


def around_a_pair(space: Space, share: float, missed: float) -> RoundStatistics:
    """A round whose only pair is of the third of six calls: its secant is ``share`` of the slope that holds
    F, and leaves so much of the difference of D as is ``missed`` times that of x.
    """
    calls = calls_of_euler(6)
    span, (along, off) = Span(), torch.eye(2, dtype=torch.float64)
    change = share * space.gaussian_slope(calls[2].sigma) * along + missed * off
    pair = Pair(Combination({0: 1.0}), (Combination({1: 1.0}),))
    gram = span.gram([span.vector(along), span.vector(change)])
    return RoundStatistics(space, "F", calls, lambda: 1, gram=gram, pairs={2: pair})


@given(st.floats(0.0, 3.0))
def test_a_secant_is_trusted_half_as_far_at_later_calls_and_never_wholly(missed: float) -> None:
    """Twice what it missed by, in units of the data; a quarter of the distance where that is less."""
    space = Space(sigma_data=0.5)
    found = around_a_pair(space, 0.5, missed)
    unit = space.scale(found.calls[2].sigma) / 0.5
    assert found.lipschitz(4) == pytest.approx(max(2 * missed * unit, 0.25))


@pytest.mark.parametrize("share", [-4.0, -0.5, 0.25, 1.0, 4.0])
def test_a_later_call_follows_its_state_no_further_than_gaussian_data_would(share: float) -> None:
    found = around_a_pair(SPACE, share, 0.0)
    slope = SPACE.gaussian_slope(found.calls[4].sigma)
    assert found.dD_dx(4) == pytest.approx(min(max(share, -1), 1) * slope)


def test_calls_without_a_pair_take_the_share_of_the_last_that_has_one() -> None:
    calls = calls_of_euler(6)
    span = Span()
    x = torch.ones(4, dtype=torch.float64)
    gram = span.gram([span.vector(x), span.vector(0.25 * SPACE.gaussian_slope(calls[2].sigma) * x)])
    found = RoundStatistics(
        SPACE,
        "F",
        calls,
        lambda: 1,
        gram=gram,
        pairs={2: Pair(Combination({0: 1.0}), (Combination({1: 1.0}),))},
    )
    assert found.dD_dx(1) == SPACE.gaussian_slope(calls[1].sigma)
    assert found.dD_dx(4) == pytest.approx(0.25 * SPACE.gaussian_slope(calls[4].sigma))
    assert found.lipschitz(4) == MIN_LIPSCHITZ < found.lipschitz(1) == 1.0


@pytest.mark.parametrize("worst", [0, 1, 2])
@pytest.mark.parametrize("row", [0, 1])
def test_a_latent_deviates_as_much_as_its_piece_that_is_furthest_off(worst: int, row: int) -> None:
    """Two pictures, packed from parts of 3, 4 and 5: one part of one of them is off."""
    parts, calls = (3, 4, 5), calls_of_euler(4)
    pieces = [torch.ones(2, 1, length) for length in parts]
    pieces[worst][row] = 3.0
    span = Span(parts)
    gram = span.gram([span.vector(torch.cat(pieces, -1).double())])
    numels = (2 * sum(parts), *(length for length in parts for _ in range(2)))
    errors = {0: (Combination({0: 1.0}),)}
    found = RoundStatistics(SPACE, "F", calls, lambda: 1, lambda: 0.5, numels, gram, errors)
    step = 1 - calls[1].sigma / calls[0].sigma
    assert found.deviation(1) == pytest.approx(0.5 * 3 * step / SPACE.scale(calls[1].sigma))


def test_a_latent_of_several_parts_is_drafted_to_the_tolerance_in_each() -> None:
    """A small part that moves, beside one of which every draft is exact, and in which it would be
    lost: the deviation that counts, and is reported, is that of the small one, twice that of the whole.
    """

    def model(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        still, moving = x.split((12, 4), -1)
        return torch.cat([still * 0, moving / 2 + torch.sin(9 * sigma).reshape(-1, 1, 1)], -1)

    sigmas = karras(20, top=3.0)
    drafts = Drafting(Policy("verified", 4, 0.05), DRAFTS["extrapolated"](False), SPACE, parts=(12, 4))
    _, speculative = drafted(euler, model, sigmas, start(sigmas, 1)[:, None], drafts, Watched)
    newest = {n: found.lipschitz(n, 2) * 2 * distance for n, found, distance in speculative.seen}
    used = {
        state.call: state.deviation
        for states in speculative.report.rounds
        for state in states
        if state.accepted
    }
    assert len(used) > 3
    for n, reported in used.items():
        assert reported == pytest.approx(newest[n], abs=1e-9) and reported < 0.05


def test_every_picture_of_a_batch_is_drafted_to_the_tolerance() -> None:
    """One that moves beside fifteen of which every draft is exact: its deviation is four times that of the
    batch, and it takes the rounds that it takes alone.
    """

    def model(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        moving = x[:1] / 2 + torch.sin(9 * sigma[:1]).reshape(-1, 1)
        return torch.cat([moving, x[1:] * 0])

    sigmas = karras(20, top=3.0)
    drafts = Drafting(Policy("verified", 4, 0.05), DRAFTS["extrapolated"](False), SPACE)
    batch, alone = (
        drafted(euler, model, sigmas, start(sigmas, 16)[:rows], drafts)[1].report for rows in (16, 1)
    )
    assert [[each.call for each in calls] for calls in batch.rounds] == [
        [each.call for each in calls] for calls in alone.rounds
    ]
    assert batch.largest_deviation == pytest.approx(alone.largest_deviation, rel=0.5) and batch.rejections


def test_a_prediction_with_uncond_beside_it_tells_the_mean_of_both() -> None:
    """Slopes of 0.2 and 0.6 along the pair: a secant of 0.4, which misses each by 0.2."""
    calls, span = calls_of_euler(4), Span()
    x = torch.ones(4, dtype=torch.float64)
    gram = span.gram([span.vector(each) for each in (x, 0.2 * x, 0.6 * x)])
    pair = Pair(Combination({0: 1.0}), (Combination({1: 1.0}), Combination({2: 1.0})))
    found = RoundStatistics(SPACE, "F", calls, lambda: 1, gram=gram, pairs={1: pair})
    assert found.dD_dx(1) == pytest.approx(0.4)
    sigma = calls[1].sigma
    assert secant_error(gram, pair, found.dD_dx(1), SPACE, sigma) == pytest.approx(0.2 * SPACE.scale(sigma))


def test_two_evaluations_at_one_state_tell_no_slope_and_if_they_differ_no_bound() -> None:
    calls, span = calls_of_euler(4), Span()
    nothing, change = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    gram = span.gram([span.vector(nothing), span.vector(change)])
    x, D = Combination({0: 1.0}), Combination({1: 1.0})
    found = RoundStatistics(SPACE, "F", calls, lambda: 1, lambda: 0.7, gram=gram, pairs={1: Pair(x, (D,))})
    assert found.dD_dx(1) == SPACE.gaussian_slope(calls[1].sigma)
    assert found.lipschitz(1) == 0.7
    assert secant_error(gram, Pair(x, (D,)), 0.5, SPACE, 1.0) == math.inf
    assert secant_error(gram, Pair(x, (x,)), 0.5, SPACE, 1.0) == 0.0
