# SPDX-License-Identifier: GPL-3.0-or-later
"""Spaces, predictors, combinations and the noise tape, each against what it must be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dizzydiff.common.alpha import alpha_flow, alpha_ve
from dizzydiff.drafting.combination import Combination, Evaluation, Span, newest_per_sigma, weighted_sum
from dizzydiff.drafting.noise import NoiseTape
from dizzydiff.drafting.predictors import (
    DRAFTS,
    EpsPolynomial,
    GaussianResponse,
    Predictor,
    carried,
    lagrange,
)
from dizzydiff.drafting.space import Basis, Space
from dizzydiff.kernels.carry import carry

from .samplers import seeded_noise

SPACES = st.sampled_from([Space(alpha_ve), Space(alpha_flow), Space(alpha_ve, 0.5), Space(alpha_flow, 2.0)])
SIGMAS = st.floats(0.01, 0.99)


def vector(seed: int) -> torch.Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predicted(
    predictor: Predictor,
    space: Space,
    known: list[Evaluation],
    parameter: float,
    x: torch.Tensor,
    sigma: float,
) -> torch.Tensor:
    span = Span()
    history = [span.evaluation(each) for each in known]
    return span.evaluate(predictor(space, history, parameter, span.vector(x), sigma))


def fitted(predictor: Predictor, space: Space, known: list[Evaluation], seen: Evaluation) -> float:
    span = Span()
    residuals = predictor.residuals(space, [span.evaluation(each) for each in known], span.evaluation(seen))
    ends = list(itertools.accumulate(map(len, residuals), initial=0))
    gram = span.gram([part for parts in residuals for part in parts])
    rows = [tuple(Combination({i: 1.0}) for i in range(*ends[e : e + 2])) for e in range(len(residuals))]
    return predictor.fit(rows, gram)


def moved(space: Space, basis: Basis, known: Evaluation, x: torch.Tensor) -> torch.Tensor:
    span = Span()
    return span.evaluate(carried(span.evaluation(known), span.vector(x), space.dD_dx(basis, known.sigma)))


@given(SPACES, SIGMAS)
def test_bases_are_the_same_prediction(space: Space, sigma: float) -> None:
    x, D = vector(0), vector(1)
    torch.testing.assert_close(space.D_of_F(x, space.F_of(x, D, sigma), sigma), D)
    torch.testing.assert_close(space.D_of_eps(x, space.eps_of(x, D, sigma), sigma), D)


@given(SPACES, SIGMAS)
def test_f_of_the_matching_gaussian_is_zero_and_carrying_it_is_exact(space: Space, sigma: float) -> None:
    """Data N(0, sigma_d^2): D = gaussian_slope x."""
    x, elsewhere = vector(0), vector(1)
    known = Evaluation(x, sigma, space.gaussian_slope(sigma) * x[None])
    torch.testing.assert_close(
        space.F_of(x, known.prediction, sigma), torch.zeros(1, 5, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        moved(space, "F", known, elsewhere), space.gaussian_slope(sigma) * elsewhere[None]
    )


@given(SPACES, SIGMAS)
def test_carrying_eps_holds_eps(space: Space, sigma: float) -> None:
    x, elsewhere, D = vector(0), vector(1), vector(2)[None]
    result = moved(space, "eps", Evaluation(x, sigma, D), elsewhere)
    torch.testing.assert_close(space.eps_of(elsewhere, result, sigma), space.eps_of(x, D, sigma))


@given(SPACES, SIGMAS, st.floats(-1, 1))
def test_predictions_are_carried_alike_as_tensors_and_as_combinations(
    space: Space, sigma: float, slope: float
) -> None:
    span, known, x = Span(), Evaluation(vector(0), sigma, torch.stack([vector(1), vector(2)])), vector(3)
    combined = span.evaluate(carried(span.evaluation(known), span.vector(x), slope))
    torch.testing.assert_close(combined, carry(known.prediction, known.x, x, slope)[0])


def test_combinations_of_combinations_are_worked_out_at_once() -> None:
    span, (a, b, unused) = Span(), [vector(seed) for seed in range(3)]
    one = weighted_sum([(2.0, span.vector(a)), (-1.0, span.vector(b)), (0.0, span.vector(unused))])
    other = weighted_sum([(3.0, one), (0.5, one)])
    assert set(other.weights) == {0, 1}
    torch.testing.assert_close(span.evaluate([one, other]), torch.stack([2 * a - b, 7 * a - 3.5 * b]))
    gram = span.gram([one, other])
    assert gram(Combination({0: 2.0}), Combination({0: 1.0, 1: -1.0})) == pytest.approx(
        float(2 * (2 * a - b) @ ((2 * a - b) - (7 * a - 3.5 * b)))
    )
    assert gram.inner(
        (Combination({0: 1.0}), Combination({1: 1.0})), (Combination({1: 1.0}), Combination({0: 1.0}))
    ) == pytest.approx(float(2 * (2 * a - b) @ (7 * a - 3.5 * b)))


@pytest.mark.parametrize("rising", [False, True])
def test_of_evaluations_at_a_rounding_of_one_sigma_the_last_is_kept(rising: bool) -> None:
    """In the order of the run."""
    x = torch.zeros(1)
    run = [Evaluation(x, sigma, x) for sigma in (8.0, 4.0, 2.0, 2.0 * (1 + 2e-4), 4.0 * (1 - 2e-4), 1.99)]
    kept = newest_per_sigma(run, rising)
    assert kept == sorted([run[0], run[3], run[4], run[5]], key=lambda each: each.sigma, reverse=not rising)


def test_sigmas_near_zero_are_told_apart_by_their_ratio() -> None:
    x = torch.zeros(1)
    run = [Evaluation(x, sigma, x) for sigma in (4e-4, 3e-4, 2.9e-4)]
    assert newest_per_sigma(run) == run


def test_pieces_of_a_latent_have_inner_products_of_their_own() -> None:
    """Of two rows, packed from parts of 1, 2 and 4: numbered from 1, where 0 is the whole."""
    span, parts = Span((1, 2, 4)), (1, 2, 4)
    one, other = torch.randn(2, 2, 1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = span.gram([span.vector(one), span.vector(other)])
    pair = Combination({0: 1.0}), Combination({1: 1.0})
    products = [
        float((a[row] * b[row]).sum())
        for a, b in zip(one.split(parts, -1), other.split(parts, -1), strict=True)
        for row in range(2)
    ]
    assert [gram.of_piece(n)(*pair) for n in range(7)] == pytest.approx([sum(products), *products])
    assert gram(*pair) == pytest.approx(sum(products))


@given(
    st.integers(0, 3), st.lists(st.floats(0.1, 5), min_size=4, max_size=4, unique_by=lambda t: round(t, 1))
)
def test_lagrange_weights_reproduce_polynomials(order: int, times: list[float]) -> None:
    nodes, t = times[: order + 1], 0.05
    terms = [weight * node**order for weight, node in zip(lagrange(nodes, t), nodes, strict=True)]
    assert sum(terms) == pytest.approx(t**order, abs=1e-9 * sum(map(abs, terms)))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_an_eps_polynomial_is_exact_where_eps_is_one_and_its_order_is_found(order: int) -> None:
    space, sigmas = Space(), (4.0, 3.0, 2.0, 1.2, 0.7)
    x = vector(0)

    def known(sigma: float) -> Evaluation:
        eps = (vector(1) + math.sqrt(sigma) ** order * vector(2))[None]
        return Evaluation(x, sigma, space.D_of_eps(x, eps, sigma))

    history, ahead = [known(sigma) for sigma in sigmas[:4]], known(sigmas[4])
    predictor = EpsPolynomial((3, order))
    torch.testing.assert_close(predicted(predictor, space, history, order, x, sigmas[4]), ahead.prediction)
    rough = [Evaluation(k.x, k.sigma, k.prediction + 0.1 * vector(9 + i)) for i, k in enumerate(history)]
    assert fitted(predictor, space, rough, ahead) == min(
        (3, order),
        key=lambda o: float(
            (predicted(predictor, space, rough, o, x, sigmas[4]) - ahead.prediction).square().mean()
        ),
    )


def test_an_order_is_not_judged_by_fewer_predictions_than_it_goes_through() -> None:
    """Through three predictions goes a parabola; that it is exact says nothing of order 3."""
    space, x = Space(), vector(0)

    def known(sigma: float) -> Evaluation:
        return Evaluation(x, sigma, space.D_of_eps(x, (vector(1) + sigma * vector(2))[None], sigma))

    history, ahead = [known(sigma) for sigma in (4.0, 3.0, 2.0)], known(1.2)
    assert fitted(EpsPolynomial((1, 3)), space, history, ahead) == 1


def test_where_all_is_noise_the_newest_prediction_stands() -> None:
    """At a flow model's highest level alpha is 0, and eps says nothing of D: it is carried as with F held."""
    space = Space(alpha_flow)
    known = [Evaluation(vector(i), sigma, vector(9 + i)[None]) for i, sigma in enumerate((0.9, 0.8))]
    found = predicted(EpsPolynomial((1,)), space, known, 1, vector(5), 1.0)
    torch.testing.assert_close(found, known[-1].prediction)
    assert space.dD_dx("eps", 1.0) == space.dD_dx("F", 1.0) == 0


def test_until_there_is_evidence_the_newest_prediction_follows_the_state_as_that_of_gaussian_data() -> None:
    space, predictor, x = Space(), GaussianResponse(), vector(5)
    old, new = (Evaluation(vector(i), sigma, vector(9 + i)[None]) for i, sigma in enumerate((4.0, 2.0)))
    found = predicted(predictor, space, [old, new], predictor.start, x, 1.0)
    torch.testing.assert_close(space.F_of(x, found, 1.0), space.F_of(new.x, new.prediction, 2.0))


@given(st.floats(0.0, 1.0), st.floats(0.05, 20.0), st.floats(0.05, 20.0))
def test_the_share_by_which_predictions_follow_the_state_is_found(
    share: float, before: float, after: float
) -> None:
    space, predictor, old = Space(), GaussianResponse(), Evaluation(vector(0), before, vector(1)[None])
    x = vector(2)
    seen = Evaluation(x, after, predicted(predictor, space, [old], share, x, after))
    assert fitted(predictor, space, [old], seen) == pytest.approx(share, abs=1e-6)
    held = space.F_of(x, predicted(predictor, space, [old], 1.0, x, after), after)
    torch.testing.assert_close(held, space.F_of(old.x, old.prediction, before), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("share", "found"), [(-0.5, 0.0), (1.7, 1.0)])
def test_predictions_are_never_taken_to_follow_the_state_backwards_or_further_than_gaussian_data(
    share: float, found: float
) -> None:
    space, predictor, old = Space(), GaussianResponse(), Evaluation(vector(0), 2.0, vector(1)[None])
    seen = Evaluation(vector(2), 1.0, predicted(predictor, space, [old], share, vector(2), 1.0))
    assert fitted(predictor, space, [old], seen) == pytest.approx(found)


@pytest.mark.parametrize("best", [1, 2, 3])
def test_extrapolated_drafts_take_the_order_of_1_to_3_that_would_have_predicted_best(best: int) -> None:
    space, predictor = Space(), DRAFTS["extrapolated"](False).predictor
    sigmas, x = (4.0, 3.0, 2.0, 1.2, 0.7), vector(0)

    def error(history: list[Evaluation], ahead: Evaluation, order: int) -> float:
        return float((predicted(predictor, space, history, order, x, ahead.sigma) - ahead.prediction).norm())

    for seed in range(100):
        rough = [
            Evaluation(x, s, (x / (1 + s) + 0.05 * vector(seed + i))[None]) for i, s in enumerate(sigmas)
        ]
        history, ahead = rough[:-1], rough[-1]
        if min((1, 2, 3), key=lambda order: error(history, ahead, order)) == best:
            assert fitted(predictor, space, history, ahead) == best
            return
    pytest.fail(f"no history of which order {best} is the best")


def test_an_order_waits_for_its_predictions() -> None:
    """Of three predictions order 3 cannot be judged, and until there are as many, the order stays at 2."""
    space, predictor = Space(), DRAFTS["extrapolated"](False).predictor
    history = [Evaluation(vector(i), sigma, vector(9 + i)[None]) for i, sigma in enumerate((4.0, 3.0, 2.0))]
    ahead = Evaluation(vector(5), 1.2, vector(6)[None])
    assert fitted(predictor, space, history[:2], ahead) == predictor.start == 2
    assert fitted(predictor, space, history, ahead) in (1, 2)


def test_drafts_and_the_sampler_hear_the_plain_samplers_noises() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    plain = seeded_noise(x)
    expected = [plain(x, x) for _ in range(6)]
    asked = []

    def draw(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return plain_again(sigma, sigma_next)

    plain_again, noise_sigmas = seeded_noise(x), [(6.0 - i, 5.0 - i) for i in range(6)]
    tape = NoiseTape(draw, noise_sigmas, x)
    real = tape.reader()
    assert torch.equal(real(torch.tensor(6.0), torch.tensor(5.0)), expected[0])
    assert torch.equal(tape[3], expected[3])
    tape.forget(1)
    assert len(tape) == 3
    assert [torch.equal(real(*map(torch.tensor, noise_sigmas[i])), expected[i]) for i in range(1, 6)] == [
        True
    ] * 5
    assert asked == noise_sigmas, "a noise is drawn once, and for the sigmas at which the sampler asks"


def test_a_drafts_noise_is_drawn_for_the_very_sigmas_at_which_the_sampler_asks() -> None:
    """In the dtype of the run: 0.1 has other digits in single precision, and noise may depend on them."""
    asked = []

    def draw(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        asked.append((sigma, sigma_next))
        return vector(0)

    sigmas = torch.tensor([0.1, 0.03], dtype=torch.float64)
    assert torch.equal(NoiseTape(draw, [(0.1, 0.03)], sigmas)[0], vector(0))
    assert torch.equal(torch.stack(asked[0]), sigmas)
