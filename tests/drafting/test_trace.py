# SPDX-License-Identifier: GPL-3.0-or-later
"""The trace of a sampler, against its formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dizzydiff.common.dry_run import MAX_CALLS, Untraceable
from dizzydiff.common.sampler_trace import trace

from .samplers import SAMPLERS, Mixture, StandIn, adaptive, karras


def toy(predict) -> StandIn:
    return StandIn(Mixture(), lambda x, sigma, **_: predict(x, sigma)[0])


@given(st.integers(2, 12))
def test_the_trace_knows_every_model_call(steps: int) -> None:
    sigmas = karras(steps)
    calls = trace(SAMPLERS["euler"], toy, sigmas, 2).calls
    assert [call.step for call in calls] == list(range(steps))
    assert [call.sigma for call in calls] == pytest.approx(sigmas[:-1].tolist(), rel=1e-6)
    assert [call.step for call in trace(SAMPLERS["heun"], toy, sigmas, 2).calls] == [
        i // 2 for i in range(2 * steps - 1)
    ]
    assert [call.noises_before for call in trace(SAMPLERS["ancestral"], toy, sigmas, 2).calls] == list(
        range(steps)
    )


@given(st.integers(2, 12))
def test_states_are_combined_as_the_samplers_formulas_say(steps: int) -> None:
    """Euler: x' = r x + (1 - r) D, r = sigma' / sigma. Ancestral: the same down to sigma_down, then sigma_up
    times a noise.
    """
    sigmas = karras(steps)
    euler = trace(SAMPLERS["euler"], toy, sigmas, 2)
    ancestral = trace(SAMPLERS["ancestral"], toy, sigmas, 2)
    for m in range(1, steps):
        s, t = float(sigmas[m - 1]), float(sigmas[m])
        (coeff,) = euler.calls[m].denoised_coeffs
        assert coeff == (m - 1, 0, pytest.approx(1 - t / s))
        assert euler.calls[m].x_coeff == pytest.approx(t / s)
        assert euler.calls[m].noise_coeffs == ()
        up = t * math.sqrt(1 - t**2 / s**2)
        assert ancestral.calls[m].x_coeff == pytest.approx(math.sqrt(t**2 - up**2) / s)
        assert ancestral.calls[m].noise_coeffs == ((m - 1, pytest.approx(up)),)
        assert ancestral.noise_sigmas[m - 1] == (pytest.approx(s), pytest.approx(t))


def test_a_multistep_sampler_is_traced_with_its_memory() -> None:
    """DPM-Solver++(2M): two predictions a state, and nothing older is kept for the states to come."""
    found = trace(SAMPLERS["dpmpp_2m"], toy, karras(9), 2)
    assert [[i for i, _, _ in call.denoised_coeffs] for call in found.calls] == [
        [],
        [0],
        *([m - 2, m - 1] for m in range(2, 9)),
    ]
    assert [found.oldest(n)[0] for n in range(9)] == [0, 0, 1, 2, 3, 4, 5, 6, 8]


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
def test_a_sampler_that_remembers_derivatives_is_traced_in_those(order: int) -> None:
    """In predictions alone each of its states would depend on all before; the last terms are those of the
    formula.
    """
    sigmas = karras(20)
    found = trace(adams(order), toy, sigmas, 2)
    assert all(
        i >= m - order
        for m, call in enumerate(found.calls)
        for i, *_ in (*call.state_coeffs, *call.denoised_coeffs)
    )
    last = found.calls[-1]
    dt, oldest = float(sigmas[-2] - sigmas[-3]), {2: -0.5, 4: -9 / 24}[order]
    assert last.x_coeff == pytest.approx(1.0)
    assert last.state_coeffs[0] == (
        len(found.calls) - 1 - order,
        pytest.approx(dt * oldest / found.calls[-1 - order].sigma),
    )
    assert last.denoised_coeffs[0][2] == pytest.approx(-last.state_coeffs[0][1])


def test_samplers_that_cannot_be_traced_are_found_out() -> None:
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

    def to_zero(model, x, sigmas, callback, noise):
        return model(SAMPLERS["euler"](model, x, sigmas, callback, noise), sigmas[-1:].expand(x.shape[0]))

    reasons = {
        endless: f"more than {MAX_CALLS} model calls",
        adaptive: "depends on what the model predicted",
        silent: "one by one",
        clipping: "not linear",
        own_noise: "noise of a kind of its own",
        remembering: "long before",
        to_zero: "not above zero",
    }
    for sampler, reason in reasons.items():
        with pytest.raises(Untraceable, match=reason):
            trace(sampler, toy, karras(24), 2)


def echoing(lag: int):
    """Euler's steps, and a tenth of the prediction ``lag`` calls back."""

    def sampler(model, x, sigmas, callback, noise):
        seen = []
        for i in range(len(sigmas) - 1):
            seen.append(model(x, sigmas[i].expand(x.shape[0])))
            callback({"i": i, "x": x, "denoised": seen[-1]})
            x = x + (x - seen[-1]) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
            x = x + (0.1 * seen[i + 1 - lag] if i + 1 >= lag else 0)
        return x

    return sampler


def test_a_sampler_may_remember_the_last_16_predictions() -> None:
    found = trace(echoing(16), toy, karras(24), 2)
    assert found.calls[20].denoised_coeffs[0] == (4, 0, pytest.approx(0.1))
    assert found.oldest(20)[0] == 5, "the next call reads it"
    with pytest.raises(Untraceable, match="long before"):
        trace(echoing(17), toy, karras(24), 2)


def test_a_sampler_that_reads_uncond_is_traced_in_both_parts() -> None:
    """CFG++: x' = D + (sigma' / sigma)(x - uncond). A prediction of one part is both."""

    def euler_cfg_pp(model, x, sigmas, callback, noise):
        for i in range(len(sigmas) - 1):
            D = model(x, sigmas[i].expand(x.shape[0]))
            callback({"i": i, "x": x, "denoised": D})
            x = D + sigmas[i + 1] / sigmas[i] * (x - model.uncond)
        return x

    def with_uncond(predict) -> StandIn:
        def answer(x, sigma):
            D, stand_in.uncond = predict(x, sigma)
            return D

        stand_in = StandIn(Mixture(), answer)
        return stand_in

    sigmas = karras(6)
    call, ratio = trace(euler_cfg_pp, with_uncond, sigmas, 2).calls[3], float(sigmas[3] / sigmas[2])
    assert call.x_coeff == pytest.approx(ratio)
    assert call.denoised_coeffs == ((2, 0, pytest.approx(1)), (2, 1, pytest.approx(-ratio)))
    both, one = ({2: parts} for parts in (("denoised", "uncond"), ("denoised",)))
    assert [vector for _, vector in call.terms(3, {2: "x"}, both)] == ["x", "denoised", "uncond"]
    assert [vector for _, vector in call.terms(3, {2: "x"}, one)] == ["x", "denoised", "denoised"]


def test_a_run_from_a_picture_to_noise_is_known_to_rise() -> None:
    sigmas = karras(6)
    assert not trace(SAMPLERS["euler"], toy, sigmas, 2).rising
    assert trace(SAMPLERS["euler"], toy, sigmas[:-1].flip(0), 2).rising


def test_rounding_is_told_from_what_is_not_linear() -> None:
    """In single precision, and a bend of a hundredth."""

    def bent(bend: float):
        def sampler(model, x, sigmas, callback, noise):
            return SAMPLERS["euler"](
                lambda x, sigma: model(x, sigma) + bend * x.abs(), x, sigmas, callback, noise
            )

        return sampler

    sigmas = karras(20).float()
    assert len(trace(bent(0.0), toy, sigmas, 2).calls) == 20
    with pytest.raises(Untraceable, match="not linear"):
        trace(bent(0.01), toy, sigmas, 2)


def test_a_sampler_with_sigmas_of_its_own_is_traced() -> None:
    def elsewhere(model, x, sigmas, callback, noise):
        own = torch.linspace(float(sigmas[0]), 0.0, len(sigmas), dtype=x.dtype) ** 2
        return SAMPLERS["euler"](model, x, own, callback, noise)

    calls = trace(elsewhere, toy, karras(8), 2).calls
    assert [call.sigma for call in calls] == pytest.approx((torch.linspace(10, 0, 9) ** 2).tolist()[:-1])
