# SPDX-License-Identifier: GPL-3.0-or-later
"""What draft-refine promises: the paper's method exactly, the sequential result where it must, fewer rounds
and how far off.
"""

from __future__ import annotations

import itertools
import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dizzydiff.drafting.errors import Undraftable
from dizzydiff.drafting.policies import MODES, Policy
from dizzydiff.drafting.predictors import DRAFTS
from dizzydiff.drafting.space import Space
from dizzydiff.drafting.speculation import SpeculativeModel
from dizzydiff.drafting.window import Drafting

from .samplers import SAMPLERS, Mixture, deviation, drafted, euler, karras, plainly, start

SPACE = Space()


def how(
    mode: str, k: int, tolerance: float = math.inf, frozen: bool = False, stochastic: bool = False
) -> Drafting:
    policy = Policy(mode, k, tolerance)  # type: ignore[arg-type]
    return Drafting(policy, DRAFTS["frozen" if frozen else "extrapolated"](stochastic), SPACE)


def rounds(policy: Policy, n: int) -> int:
    answered = done = 0
    while answered < n:
        answered, done = answered + policy.width(done, n - answered), done + 1
    return done


@pytest.mark.parametrize("k", range(1, 9))
def test_rounds_are_those_of_the_formulas(k: int) -> None:
    for n in range(1, 61):
        assert rounds(Policy("aggressive", k), n) == 1 + math.ceil((n - 1) / k)
        assert rounds(Policy("conservative", k), n) == 2 * (n // (k + 1)) + min(n % (k + 1), 2)


def test_at_tolerance_zero_no_draft_is_near_enough_and_unverified_ones_always_are() -> None:
    assert not Policy("verified", 2, 0.0).accepts(0.0)
    assert Policy("verified", 2, 0.1).accepts(0.09)
    assert Policy("aggressive", 2, 0.0).accepts(1.0) and Policy("conservative", 2, 0.0).accepts(1.0)
    assert [Policy(mode).verifies for mode in MODES] == [mode == "verified" for mode in MODES]


@pytest.mark.parametrize("mode", ["aggressive", "conservative"])
@pytest.mark.parametrize(("n", "k"), [(2, 8), (20, 3), (50, 4), (60, 7)])
def test_a_run_takes_the_rounds_of_its_policy_and_evaluates_nothing_twice(mode: str, n: int, k: int) -> None:
    model, sigmas = Mixture(dimension=2, centres=2), karras(n)
    report = drafted(euler, model, sigmas, start(sigmas, 1, 2), how(mode, k, frozen=True))[1].report
    assert len(report.rounds) == rounds(how(mode, k).policy, n)
    assert report.evaluations == model.calls == n


def paper(model: Mixture, x: Tensor, sigmas: Tensor, k: int, conservative: bool) -> Tensor:
    """DRiffusion with Euler steps, written from the paper: skip transitions with one eps, refined with the
    drafts' own eps.
    """
    n = len(sigmas) - 1

    def eps_at(x: Tensor, i: int) -> Tensor:
        return (x - model(x, sigmas[i].expand(len(x)))) / sigmas[i]

    def window(x: Tensor, i: int, newest: Tensor, states: int) -> tuple[Tensor, int, Tensor]:
        drafts = [x + (sigmas[j] - sigmas[i]) * newest for j in range(i, min(i + states, n))]
        for j, eps in enumerate([eps_at(draft, i + j) for j, draft in enumerate(drafts)], i):
            x, newest = x + (sigmas[j + 1] - sigmas[j]) * eps, eps
        return x, i + len(drafts), newest

    i, newest = 0, torch.zeros_like(x)
    while i < n:
        if conservative or i == 0:
            x, i, newest = window(x, i, newest, 1)
        if i < n:
            x, i, newest = window(x, i, newest, k)
    return x


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(1, 6), st.booleans())
def test_frozen_drafts_of_euler_are_the_papers(n: int, k: int, conservative: bool) -> None:
    model, sigmas = Mixture(), karras(n)
    x = start(sigmas)
    mode = "conservative" if conservative else "aggressive"
    torch.testing.assert_close(
        drafted(euler, model, sigmas, x, how(mode, k, frozen=True))[0],
        paper(model, x, sigmas, k, conservative),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "policy",
    [("aggressive", 1, math.inf), ("conservative", 1, math.inf), ("verified", 1, 1.0), ("verified", 4, 0.0)],
)
def test_width_one_and_tolerance_zero_are_the_sequential_sampler_bit_for_bit(
    name: str, policy: tuple[str, int, float]
) -> None:
    model, sigmas = Mixture(), karras(12)
    x = start(sigmas)
    result, speculative = drafted(SAMPLERS[name], model, sigmas, x, how(*policy))
    assert torch.equal(result, plainly(SAMPLERS[name], model, sigmas, x))
    if (
        name != "heun"
    ):  # its second question follows from the first answer, so that this draft is exact and used
        assert len(speculative.report.rounds) == len(speculative.calls)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_extrapolated_drafts_deviate_a_fifth_of_frozen_ones_in_the_same_rounds(name: str) -> None:
    """Geometric mean over mixtures, widths 2 and 4, and numbers of steps; never worse."""
    ratios = []
    for (dimension, centres, width), k, steps in itertools.product(
        [(16, 4, 0.3), (64, 8, 0.15)], (2, 4), (20, 28, 50)
    ):
        model, sigmas = Mixture(dimension, centres, width), karras(steps)
        x = start(sigmas, 8, dimension)
        reference = plainly(SAMPLERS[name], model, sigmas, x)
        ours, frozen = (
            drafted(SAMPLERS[name], model, sigmas, x, how("aggressive", k, frozen=f)) for f in (False, True)
        )
        assert len(ours[1].report.rounds) == len(frozen[1].report.rounds)
        ratios.append(deviation(ours[0], reference) / deviation(frozen[0], reference))
    assert max(ratios) < 1
    assert math.prod(ratios) ** (1 / len(ratios)) < 0.2


@pytest.mark.parametrize("name", SAMPLERS)
def test_verified_runs_stay_within_the_default_tolerance_in_far_fewer_rounds(name: str) -> None:
    model, sigmas = Mixture(), karras(50)
    x = start(sigmas, 1)
    result, speculative = drafted(
        SAMPLERS[name], model, sigmas, x, how("verified", 4, 0.01, stochastic=name == "ancestral")
    )
    assert deviation(result, plainly(SAMPLERS[name], model, sigmas, x)) < 0.01
    assert len(speculative.report.rounds) <= 0.45 * len(speculative.calls)


@settings(max_examples=15)
@given(st.floats(1e-4, 1e-1))
def test_no_used_draft_is_off_by_more_than_the_tolerance(tolerance: float) -> None:
    model, sigmas = Mixture(), karras(16)
    report = drafted(
        SAMPLERS["ancestral"], model, sigmas, start(sigmas, 1), how("verified", 4, tolerance, stochastic=True)
    )[1].report
    for states in report.rounds:
        assert all(s.accepted is None or s.accepted == (s.deviation < tolerance) for s in states)
    answered = [s.call for states in report.rounds for i, s in enumerate(states) if i == 0 or s.accepted]
    assert sorted(answered) == list(range(16))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_breaks_down_breaks_nothing_else(name: str, value: float) -> None:
    """Half precision overflows: the picture is lost, as without drafts, and nothing is raised."""
    exact, sigmas = Mixture(), karras(16)

    def overflowing(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        return exact(x, sigma) if sigma[0] > 1 else torch.full_like(x, value)

    verified = how("verified", 4, 0.01, stochastic=name == "ancestral")
    result, speculative = drafted(SAMPLERS[name], overflowing, sigmas, start(sigmas, 1), verified)
    assert not result.isfinite().any()
    assert len(speculative.report.rounds) <= len(speculative.calls)


@pytest.mark.parametrize("rounding", [0.0, 1e-7, -1e-7])
def test_a_sampler_that_comes_back_to_a_rounding_of_a_sigma_is_drafted_as_any_other(rounding: float) -> None:
    """Two answers at what is one sigma: a polynomial through both would be of the rounding's making."""

    def rounded(model: Any, x: Tensor, sigmas: Tensor, callback: Any, noise: Any) -> Tensor:
        asked = 0

        def asking(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal asked
            asked += 1
            return model(x, sigma * (1 + rounding * (asked % 2)))

        return SAMPLERS["heun"](asking, x, sigmas, callback, noise)

    model, sigmas = Mixture(), karras(40)
    x = start(sigmas, 4)
    result, _ = drafted(rounded, model, sigmas, x, how("aggressive", 4))
    assert deviation(result, plainly(rounded, model, sigmas, x)) < 1e-3


def test_a_dropped_window_is_drafted_again_from_its_predictions() -> None:
    """Rejected predictions are not lost: they make the next drafts, so that rounds are saved where frozen
    drafts save none.
    """
    model, sigmas = Mixture(), karras(30)
    x = start(sigmas, 1)
    report = drafted(SAMPLERS["ancestral"], model, sigmas, x, how("verified", 6, 0.005, stochastic=True))[
        1
    ].report
    assert report.rejections > 0
    assert len(report.rounds) < 30 / 1.8


def test_what_was_evaluated_at_dropped_drafts_is_not_evaluated_for_nothing() -> None:
    """Their predictions are carried to the new states: a third fewer rounds, where many are dropped."""
    rounds = 0
    for steps in (30, 50):
        sigmas = karras(steps)
        strict = how("verified", 6, 0.003, stochastic=True)
        rounds += len(
            drafted(SAMPLERS["ancestral"], Mixture(), sigmas, start(sigmas, 1), strict)[1].report.rounds
        )
    assert rounds < 80 / 2.8


def test_a_sampler_that_asks_otherwise_than_in_its_dry_run_is_not_answered() -> None:
    """For states of another shape, or once more than it said."""

    class Halved(SpeculativeModel):
        def __call__(self, x: Tensor, sigma: Tensor, **arguments: Any) -> Tensor:
            return super().__call__(x[:1], sigma[:1], **arguments)

    model, sigmas = Mixture(), karras(6)
    x = start(sigmas)
    with pytest.raises(Undraftable, match="otherwise than in its dry run"):
        drafted(euler, model, sigmas, x, how("aggressive", 2), Halved)
    _, speculative = drafted(euler, model, sigmas, x, how("aggressive", 2))
    with pytest.raises(Undraftable, match="otherwise than in its dry run"):
        speculative(x, sigmas[-2].expand(len(x)))


def test_capacity_of_the_devices_limits_the_width() -> None:
    model, sigmas = Mixture(), karras(10)
    report = drafted(euler, model, sigmas, start(sigmas), how("aggressive", 8), capacity=2)[1].report
    assert max(len(states) for states in report.rounds) == 2


class Alive(TorchDispatchMode):
    """Counts the latents (tensors of one length that nothing else has) that are alive."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length, self._seen = length, list[weakref.ref[Tensor]]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.shape[-1:] == (self._length,):
            self._seen.append(weakref.ref(out))
        return out

    def count(self) -> int:
        self._seen = [reference for reference in self._seen if reference() is not None]
        alive = [tensor for reference in self._seen if (tensor := reference()) is not None]
        return len({tensor.untyped_storage().data_ptr() for tensor in alive})


@pytest.mark.parametrize("k", [2, 4, 8])
def test_memory_is_bounded_whatever_the_number_of_steps(k: int) -> None:
    """At most 2 k + 8 latents live while a round is evaluated."""
    length, sigmas, held = 977, karras(40), []
    x = start(sigmas, 1, length)
    with Alive(length) as alive:

        def half(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
            held.append(alive.count())
            return x / 2

        drafted(euler, half, sigmas, x, how("aggressive", k))  # type: ignore[arg-type]
    assert 0 < max(held) <= 2 * k + 8
