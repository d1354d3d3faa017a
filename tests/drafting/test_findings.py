# SPDX-License-Identifier: GPL-3.0-or-later
"""What a round tells, against what happens afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dizzydiff.drafting.calls import plan
from dizzydiff.drafting.coordinates import Space
from dizzydiff.drafting.findings import LEAST_ROUGHNESS, Findings, Pair
from dizzydiff.drafting.policies import Policy
from dizzydiff.drafting.span import Span
from dizzydiff.drafting.speculation import SpeculativeModel
from dizzydiff.drafting.window import Drafting

from .world import SAMPLERS, Mixture, StandIn, drafted, euler, karras, start

SPACE = Space()


class Watched(SpeculativeModel):
    """Keeps, for every question drafted that the sampler came to: what was found, and how far it was from the
    draft in truth.
    """

    def _from_window(self, n: int, x: Tensor) -> Tensor | None:
        if (draft := self._window.get(n)) is not None:
            distance = float((x - draft.x).square().mean().sqrt()) / SPACE.scale(draft.sigma)
            self.__dict__.setdefault("seen", []).append((n, self._found, distance))
        return super()._from_window(n, x)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("tolerance", [1e-3, 1e-2, 1e-1])
def test_arrivals_are_foretold(name: str, tolerance: float) -> None:
    sigmas = karras(24)
    how = Drafting.extrapolated(Policy("verified", 5, tolerance), SPACE, stochastic=name == "ancestral")
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
    how = Drafting.extrapolated(Policy("verified", 4, 0.05), SPACE, stochastic=False)
    _, speculative = drafted(euler, model, sigmas, start(sigmas, 1), how, Watched)
    slopes = [found.slope(n) for n, found, _ in speculative.seen if n in found.pairs]
    assert slopes and slopes == pytest.approx([true_slope] * len(slopes), abs=1e-6)


@given(st.floats(0, math.pi / 2), st.floats(0.05, 3), st.floats(0.3, 2))
def test_drafts_are_as_rough_along_a_pair_as_its_secant_missed_and_across_as_the_last(
    angle: float, missed: float, last: float
) -> None:
    """Three directions: of the pair's states, of what its secant misses, and across."""
    along, off, across = torch.eye(3, dtype=torch.float64)
    wrong = math.cos(angle) * along + math.sin(angle) * across
    sigmas = karras(4)
    calls = plan(
        euler, lambda answer: StandIn(Mixture(), lambda x, sigma, **_: answer(x, sigma)[0]), sigmas, 1
    ).calls
    span = Span()
    gram = span.gram([span.vector(vector) for vector in (along, 0.4 * along + missed * off, wrong)])
    found = Findings(
        SPACE,
        "F",
        calls,
        lambda: 1,
        lambda: last,
        3,
        gram,
        {0: ({2: 1.0},)},
        {1: Pair({0: 1.0}, ({1: 1.0},))},
    )
    assert found.slope(1) == pytest.approx(0.4)
    missed *= SPACE.scale(calls[1].sigma)
    assert found.roughness(1) == pytest.approx(
        max(math.hypot(math.cos(angle) * missed, math.sin(angle) * last), LEAST_ROUGHNESS)
    )
    step = float(1 - sigmas[1] / sigmas[0])
    assert found.distance(1) == pytest.approx(step / math.sqrt(3) / SPACE.scale(calls[1].sigma))


def test_questions_without_a_pair_take_the_share_of_the_last_that_has_one() -> None:
    calls = plan(
        euler, lambda answer: StandIn(Mixture(), lambda x, sigma, **_: answer(x, sigma)[0]), karras(6), 1
    ).calls
    span = Span()
    x = torch.ones(4, dtype=torch.float64)
    gram = span.gram([span.vector(x), span.vector(0.25 * SPACE.gain(calls[2].sigma) * x)])
    found = Findings(SPACE, "F", calls, lambda: 1, gram=gram, pairs={2: Pair({0: 1.0}, ({1: 1.0},))})
    assert found.slope(1) == SPACE.gain(calls[1].sigma)
    assert found.slope(4) == pytest.approx(0.25 * SPACE.gain(calls[4].sigma))
    assert found.roughness(4) == LEAST_ROUGHNESS < found.roughness(1) == 1.0
