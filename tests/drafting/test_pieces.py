# SPDX-License-Identifier: GPL-3.0-or-later
"""Coordinates, guesses, the dry run and the noise tape, each against what it must be."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dizzydiff.drafting.calls import plan
from dizzydiff.drafting.coordinates import Space, flow_signal, unit_signal
from dizzydiff.drafting.errors import Undraftable
from dizzydiff.drafting.noise import NoiseTape
from dizzydiff.drafting.predictors import Following, Guess, Trend, carried, lagrange, slope
from dizzydiff.drafting.span import Known, Span, combine
from dizzydiff.kernels.carry import carry

from .world import SAMPLERS, Mixture, StandIn, adaptive, karras, seeded_noise

SPACES = st.sampled_from(
    [Space(unit_signal), Space(flow_signal), Space(unit_signal, 0.5), Space(flow_signal, 2.0)]
)
SIGMAS = st.floats(0.01, 0.99)


def vector(seed: int) -> torch.Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def guessed(
    guess: Guess, space: Space, known: list[Known], setting: float, x: torch.Tensor, sigma: float
) -> torch.Tensor:
    span = Span()
    return span.evaluate(guess(space, [span.known(each) for each in known], setting, span.vector(x), sigma))


def best_setting(guess: Guess, space: Space, known: list[Known], seen: Known) -> float:
    span = Span()
    evidence = guess.evidence(space, [span.known(each) for each in known], span.known(seen))
    ends = list(itertools.accumulate(map(len, evidence), initial=0))
    gram = span.gram([part for parts in evidence for part in parts])
    return guess.hindsight(
        [tuple({i: 1.0} for i in range(*ends[e : e + 2])) for e in range(len(evidence))], gram
    )


def moved(space: Space, basis: Literal["eps", "F"], known: Known, x: torch.Tensor) -> torch.Tensor:
    span = Span()
    return span.evaluate(carried(span.known(known), span.vector(x), slope(space, basis, known.sigma)))


@given(SPACES, SIGMAS)
def test_bases_are_the_same_prediction(space: Space, sigma: float) -> None:
    x, D = vector(0), vector(1)
    torch.testing.assert_close(space.D_of_F(x, space.F_of(x, D, sigma), sigma), D)
    torch.testing.assert_close(space.D_of_eps(x, space.eps_of(x, D, sigma), sigma), D)


@given(SPACES, SIGMAS)
def test_f_of_the_matching_gaussian_is_zero_and_carrying_it_is_exact(space: Space, sigma: float) -> None:
    """Data N(0, sigma_d^2): D = gain x."""
    x, elsewhere = vector(0), vector(1)
    known = Known(x, sigma, space.gain(sigma) * x[None])
    torch.testing.assert_close(
        space.F_of(x, known.prediction, sigma), torch.zeros(1, 5, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(moved(space, "F", known, elsewhere), space.gain(sigma) * elsewhere[None])


@given(SPACES, SIGMAS)
def test_carrying_eps_holds_eps(space: Space, sigma: float) -> None:
    x, elsewhere, D = vector(0), vector(1), vector(2)[None]
    result = moved(space, "eps", Known(x, sigma, D), elsewhere)
    torch.testing.assert_close(space.eps_of(elsewhere, result, sigma), space.eps_of(x, D, sigma))


@given(SPACES, SIGMAS, st.floats(-1, 1))
def test_predictions_are_carried_alike_as_tensors_and_as_combinations(
    space: Space, sigma: float, slope: float
) -> None:
    span, known, x = Span(), Known(vector(0), sigma, torch.stack([vector(1), vector(2)])), vector(3)
    combined = span.evaluate(carried(span.known(known), span.vector(x), slope))
    torch.testing.assert_close(combined, carry(known.prediction, known.x, x, slope)[0])


def test_combinations_of_combinations_are_worked_out_at_once() -> None:
    span, (a, b, unused) = Span(), [vector(seed) for seed in range(3)]
    one = combine([(2.0, span.vector(a)), (-1.0, span.vector(b)), (0.0, span.vector(unused))])
    other = combine([(3.0, one), (0.5, one)])
    assert set(other) == {0, 1}
    torch.testing.assert_close(span.evaluate([one, other]), torch.stack([2 * a - b, 7 * a - 3.5 * b]))
    gram = span.gram([one, other])
    assert gram({0: 2.0}, {0: 1.0, 1: -1.0}) == pytest.approx(
        float(2 * (2 * a - b) @ ((2 * a - b) - (7 * a - 3.5 * b)))
    )
    assert gram.inner(({0: 1.0}, {1: 1.0}), ({1: 1.0}, {0: 1.0})) == pytest.approx(
        float(2 * (2 * a - b) @ (7 * a - 3.5 * b))
    )


@given(
    st.integers(0, 3), st.lists(st.floats(0.1, 5), min_size=4, max_size=4, unique_by=lambda t: round(t, 1))
)
def test_lagrange_weights_reproduce_polynomials(order: int, times: list[float]) -> None:
    nodes, t = times[: order + 1], 0.05
    terms = [weight * node**order for weight, node in zip(lagrange(nodes, t), nodes, strict=True)]
    assert sum(terms) == pytest.approx(t**order, abs=1e-9 * sum(map(abs, terms)))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_trend_is_exact_where_eps_is_a_polynomial_and_hindsight_finds_its_order(order: int) -> None:
    space, sigmas = Space(), (4.0, 3.0, 2.0, 1.2, 0.7)
    x = vector(0)

    def known(sigma: float) -> Known:
        eps = (vector(1) + math.sqrt(sigma) ** order * vector(2))[None]
        return Known(x, sigma, space.D_of_eps(x, eps, sigma))

    history, ahead = [known(sigma) for sigma in sigmas[:4]], known(sigmas[4])
    guess = Trend((3, order))
    torch.testing.assert_close(guessed(guess, space, history, order, x, sigmas[4]), ahead.prediction)
    rough = [Known(k.x, k.sigma, k.prediction + 0.1 * vector(9 + i)) for i, k in enumerate(history)]
    assert best_setting(guess, space, rough, ahead) == min(
        (3, order),
        key=lambda o: float(
            (guessed(guess, space, rough, o, x, sigmas[4]) - ahead.prediction).square().mean()
        ),
    )


@given(st.floats(0.0, 1.0), st.floats(0.05, 20.0), st.floats(0.05, 20.0))
def test_the_share_by_which_predictions_follow_the_state_is_found(
    share: float, before: float, after: float
) -> None:
    space, guess, old = Space(), Following(), Known(vector(0), before, vector(1)[None])
    x = vector(2)
    seen = Known(x, after, guessed(guess, space, [old], share, x, after))
    assert best_setting(guess, space, [old], seen) == pytest.approx(share, abs=1e-6)
    held = space.F_of(x, guessed(guess, space, [old], 1.0, x, after), after)
    torch.testing.assert_close(held, space.F_of(old.x, old.prediction, before), rtol=1e-8, atol=1e-8)


def toy(answer) -> StandIn:
    return StandIn(Mixture(), lambda x, sigma, **_: answer(x, sigma)[0])


@given(st.integers(2, 12))
def test_the_dry_run_knows_every_question(steps: int) -> None:
    sigmas = karras(steps)
    calls = plan(SAMPLERS["euler"], toy, sigmas, 2).calls
    assert [call.step for call in calls] == list(range(steps))
    assert [call.sigma for call in calls] == pytest.approx(sigmas[:-1].tolist(), rel=1e-6)
    assert [call.step for call in plan(SAMPLERS["heun"], toy, sigmas, 2).calls] == [
        i // 2 for i in range(2 * steps - 1)
    ]
    assert [call.noises for call in plan(SAMPLERS["ancestral"], toy, sigmas, 2).calls] == list(range(steps))


@given(st.integers(2, 12))
def test_states_are_foretold_as_the_samplers_formulas_say(steps: int) -> None:
    """Euler: x' = r x + (1 - r) D, r = sigma' / sigma. Ancestral: the same down to sigma_down, then sigma_up
    times a noise.
    """
    sigmas = karras(steps)
    euler = plan(SAMPLERS["euler"], toy, sigmas, 2)
    ancestral = plan(SAMPLERS["ancestral"], toy, sigmas, 2)
    for m in range(1, steps):
        s, t = float(sigmas[m - 1]), float(sigmas[m])
        (answer,) = euler.calls[m].answers
        assert answer == (m - 1, 0, pytest.approx(1 - t / s))
        assert euler.calls[m].kept == pytest.approx(t / s)
        assert euler.calls[m].draws == ()
        up = t * math.sqrt(1 - t**2 / s**2)
        assert ancestral.calls[m].kept == pytest.approx(math.sqrt(t**2 - up**2) / s)
        assert ancestral.calls[m].draws == ((m - 1, pytest.approx(up)),)
        assert ancestral.asks[m - 1] == (pytest.approx(s), pytest.approx(t))


def test_a_multistep_sampler_is_foretold_with_its_memory() -> None:
    """DPM-Solver++(2M): two answers a state, and nothing older is kept for the states to come."""
    foretold = plan(SAMPLERS["dpmpp_2m"], toy, karras(9), 2)
    assert [[i for i, _, _ in call.answers] for call in foretold.calls] == [
        [],
        [0],
        *([m - 2, m - 1] for m in range(2, 9)),
    ]
    assert [foretold.oldest(n)[0] for n in range(9)] == [0, 0, 1, 2, 3, 4, 5, 6, 8]


def adams(order: int):
    """Adams-Bashforth in sigma, whose memory is derivatives: x' = x + dt (weights . last derivatives), of
    constant weights.
    """
    weights = {2: (1.5, -0.5), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}[order]

    def sampler(model, x, sigmas, callback, noise):
        derivatives = []
        for i in range(len(sigmas) - 1):
            D = model(x, sigmas[i].expand(x.shape[0]))
            if callback:
                callback({"i": i, "x": x, "denoised": D})
            derivatives = [(x - D) / sigmas[i], *derivatives][:order]
            known = weights if len(derivatives) == order else (1.0,)
            x = x + (sigmas[i + 1] - sigmas[i]) * sum(w * d for w, d in zip(known, derivatives, strict=False))
        return x

    return sampler


@pytest.mark.parametrize("order", [2, 4])
def test_a_sampler_that_remembers_derivatives_is_foretold_from_those(order: int) -> None:
    """In answers alone each of its states would depend on all before; the last terms are those of the
    formula.
    """
    sigmas = karras(20)
    foretold = plan(adams(order), toy, sigmas, 2)
    assert all(
        i >= m - order for m, call in enumerate(foretold.calls) for i, *_ in (*call.states, *call.answers)
    )
    last = foretold.calls[-1]
    dt, oldest = float(sigmas[-2] - sigmas[-3]), {2: -0.5, 4: -9 / 24}[order]
    assert last.kept == pytest.approx(1.0)
    assert last.states[0] == (
        len(foretold.calls) - 1 - order,
        pytest.approx(dt * oldest / foretold.calls[-1 - order].sigma),
    )
    assert last.answers[0][2] == pytest.approx(-last.states[0][1])


def test_samplers_that_cannot_be_foretold_are_found_out() -> None:
    def silent(model, x, sigmas, callback, noise):
        return SAMPLERS["euler"](model, x, sigmas, None, noise)

    def clipping(model, x, sigmas, callback, noise):
        def clipped(x, sigma):
            return model(x, sigma).clamp(-0.1, 0.1)

        return SAMPLERS["euler"](clipped, x, sigmas, callback, noise)

    def own_noise(model, x, sigmas, callback, noise):
        return SAMPLERS["ancestral"](model, x, sigmas, callback, lambda *_: torch.randn_like(x))

    def remembering(model, x, sigmas, callback, noise):
        seen = []

        def averaged(x, sigma):
            seen.append(model(x, sigma))
            return sum(seen) / len(seen)

        return SAMPLERS["euler"](averaged, x, sigmas, callback, noise)

    def endless(model, x, sigmas, callback, noise):
        while True:
            model(x, sigmas[:1].expand(x.shape[0]))

    reasons = {
        endless: "more than 2000 questions",
        adaptive: "depends on what it was answered",
        silent: "one by one",
        clipping: "not linear",
        own_noise: "not linear",
        remembering: "long before",
    }
    for sampler, reason in reasons.items():
        with pytest.raises(Undraftable, match=reason):
            plan(sampler, toy, karras(24), 2)


def test_a_sampler_with_sigmas_of_its_own_is_foretold() -> None:
    def elsewhere(model, x, sigmas, callback, noise):
        own = torch.linspace(float(sigmas[0]), 0.0, len(sigmas), dtype=x.dtype) ** 2
        return SAMPLERS["euler"](model, x, own, callback, noise)

    calls = plan(elsewhere, toy, karras(8), 2).calls
    assert [call.sigma for call in calls] == pytest.approx((torch.linspace(10, 0, 9) ** 2).tolist()[:-1])


def test_drafts_and_the_sampler_hear_the_plain_samplers_noises() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    plain = seeded_noise(x)
    expected = [plain(x, x) for _ in range(6)]
    asked = []

    def draw(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return plain_again(sigma, sigma_next)

    plain_again, asks = seeded_noise(x), [(6.0 - i, 5.0 - i) for i in range(6)]
    tape = NoiseTape(draw, asks, x)
    real = tape.reader()
    assert torch.equal(real(torch.tensor(6.0), torch.tensor(5.0)), expected[0])
    assert torch.equal(tape[3], expected[3])
    tape.forget(1)
    assert len(tape) == 3
    assert [torch.equal(real(*map(torch.tensor, asks[i])), expected[i]) for i in range(1, 6)] == [True] * 5
    assert asked == asks, "a noise is drawn once, and for the sigmas at which the sampler asks"
