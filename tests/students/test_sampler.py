# SPDX-License-Identifier: GPL-3.0-or-later
"""The N-step student sampler against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dizzydiff.common.alpha import alpha_flow, alpha_ve
from dizzydiff.common.steps import euler_step
from dizzydiff.students.errors import BadSigmas
from dizzydiff.students.sampler import renoise, sample_student

VARIANCE = 0.49


def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """D(x, sigma) of data N(0, VARIANCE)."""
    return x * (VARIANCE / (VARIANCE + sigma[:, None] ** 2))


def no_noise(sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the deterministic sampler asks for no noise")


def falling(draw_from: list[float]) -> torch.Tensor:
    return torch.tensor([*sorted(draw_from, reverse=True), 0.0], dtype=torch.float64)


SIGMAS = st.lists(st.floats(0.05, 20.0), min_size=1, max_size=8, unique=True).map(falling)


@given(SIGMAS)
def test_deterministic_sampler_is_a_product_of_ddim_factors(sigmas: torch.Tensor) -> None:
    """On a Gaussian every step multiplies x: D = s x with s = V / (V + sigma^2), x' = (s + (1 - s) sigma' /
    sigma) x.
    """
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shrink = VARIANCE / (VARIANCE + sigmas[:-1] ** 2)
    factor = (shrink + (1 - shrink) * sigmas[1:] / sigmas[:-1]).prod()
    torch.testing.assert_close(
        sample_student(gaussian, x, sigmas, disable=True, eta=0.0, noise_sampler=no_noise), factor * x
    )


@given(SIGMAS, st.floats(0.05, 1.0))
def test_stochastic_sampler_has_the_closed_forms_variance(sigmas: torch.Tensor, eta: float) -> None:
    """With unit noise kept as its own coordinate, the variance obeys v' = f^2 v + sigma_s^2 - sigma_k^2."""
    steps = len(sigmas) - 1
    x = torch.zeros(1, steps + 1, dtype=torch.float64)
    x[0, 0] = sigmas[0]
    drawn = iter(range(1, steps + 1))

    def basis_noise(sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        noise = torch.zeros_like(x)
        noise[0, next(drawn)] = 1.0
        return noise

    result = sample_student(gaussian, x, sigmas, disable=True, eta=eta, noise_sampler=basis_noise)
    v = float(sigmas[0]) ** 2
    for i in range(steps):
        sigma, sigma_s = float(sigmas[i]), float(sigmas[i + 1])
        sigma_k = sigma_s if i + 1 == steps else sigma_s + eta * (float(sigmas[i + 2]) - sigma_s)
        s = VARIANCE / (VARIANCE + sigma**2)
        v = (s + (1 - s) * sigma_k / sigma) ** 2 * v + (0.0 if i + 1 == steps else sigma_s**2 - sigma_k**2)
    assert float((result**2).sum()) == pytest.approx(v, rel=1e-9)


def test_each_call_of_the_stochastic_sampler_steps_twice_the_length() -> None:
    """A model whose answer is 0 scales x by sigma_k / sigma_t, sigma_k two steps on; then noise fills up to
    sigma_s.
    """
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    seen: list[tuple[float, float]] = []
    sample_student(
        lambda x, sigma: torch.zeros_like(x),
        torch.full((1, 1), 8.0, dtype=torch.float64),
        sigmas,
        disable=True,
        callback=lambda state: seen.append((float(state["sigma"]), float(state["x"]))),
        noise_sampler=lambda sigma, following: torch.zeros(1, 1, dtype=torch.float64),
    )
    assert seen == [(8.0, 8.0), (4.0, 2.0), (2.0, 0.5), (1.0, 0.0)]


@given(sigma_k=st.floats(0.0, 5.0), up=st.floats(0.0, 5.0))
def test_renoising_adds_exactly_the_missing_variance(sigma_k: float, up: float) -> None:
    k, s = torch.tensor(sigma_k, dtype=torch.float64), torch.tensor(sigma_k + up, dtype=torch.float64)
    signal_part = renoise(
        torch.ones(1, dtype=torch.float64), k, s, torch.zeros(1, dtype=torch.float64), alpha_ve
    )
    noise_part = renoise(
        torch.zeros(1, dtype=torch.float64), k, s, torch.ones(1, dtype=torch.float64), alpha_ve
    )
    assert float(signal_part) == 1.0
    assert float(noise_part**2 + k**2) == pytest.approx(float(s**2), abs=1e-9)


@given(sigma_k=st.floats(0.0, 0.9), part=st.floats(0.0, 1.0))
def test_renoising_a_flow_keeps_signal_and_noise_levels(sigma_k: float, part: float) -> None:
    k = torch.tensor(sigma_k, dtype=torch.float64)
    s = k + part * (0.95 - k)
    clean = renoise(1.0 - k, k, s, torch.zeros(()), alpha_flow)
    gain = (1.0 - s) / (1.0 - k)
    fresh = renoise(torch.zeros(()), k, s, torch.ones((), dtype=torch.float64), alpha_flow)
    assert float(clean) == pytest.approx(float(1.0 - s))
    assert float(fresh**2 + (gain * k) ** 2) == pytest.approx(float(s**2), abs=1e-9)


def test_a_step_to_its_own_sigma_changes_nothing_and_to_zero_gives_the_answer() -> None:
    x, denoised, sigma = torch.randn(4), torch.randn(4), torch.tensor(3.0)
    torch.testing.assert_close(euler_step(x, denoised, sigma, sigma), x)
    torch.testing.assert_close(euler_step(x, denoised, sigma, torch.tensor(0.0)), denoised)


def noise_counter(x: torch.Tensor, heard: list[tuple[float, float]]):
    """Noises along coordinates of their own, from the third on; ``heard`` is what they are asked for."""

    def noise(sigma: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        heard.append((float(sigma), float(following)))
        unit = torch.zeros_like(x)
        unit[:, 1 + len(heard)] = 1.0
        return unit

    return noise


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("flow", [False, True])
def test_every_state_of_one_picture_holds_its_signal_and_its_noise(flow: bool, eta: float) -> None:
    """x = alpha x0 + sigma n, where the model knows that all data is x0: the first coordinate is x0's."""
    sigmas = torch.tensor([0.9, 0.6, 0.4, 0.1, 0.0], dtype=torch.float64)
    alpha = alpha_flow if flow else alpha_ve
    x0, x = torch.zeros(1, 6, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
    x0[0, 0], x[0, 0], x[0, 1] = 1.0, float(alpha(sigmas[0])), 0.9
    heard: list[tuple[float, float]] = []
    states: list[torch.Tensor] = []
    result = sample_student(
        lambda x, sigma: x0,
        x,
        sigmas,
        callback=lambda report: states.append(report["x"][0]),
        disable=True,
        eta=eta,
        noise_sampler=noise_counter(x, heard),
        alpha=alpha,
    )
    for sigma, state in zip(sigmas, states, strict=False):
        assert float(state[0]) == pytest.approx(float(alpha(sigma)))
        assert float(state[1:].norm()) == pytest.approx(float(sigma))
    torch.testing.assert_close(result, x0)
    assert heard == [(0.9, 0.6), (0.6, 0.4), (0.4, 0.1)], "none in the step to the last sigma"


def test_the_model_and_the_callback_are_told_what_k_diffusion_tells_them() -> None:
    sigmas, x = torch.tensor([4.0, 2.0, 0.0]), torch.ones(3, 2)
    called: list[tuple[list[float], str]] = []
    told: list[dict] = []

    def model(x: torch.Tensor, sigma: torch.Tensor, label: str) -> torch.Tensor:
        called.append((sigma.tolist(), label))
        return x / 2

    sample_student(model, x, sigmas, {"label": "a"}, told.append, True, eta=0.0, noise_sampler=no_noise)
    assert called == [([4.0] * 3, "a"), ([2.0] * 3, "a")], "one sigma a row"
    assert [(each["i"], float(each["sigma"]), float(each["sigma_hat"])) for each in told] == [
        (0, 4, 4),
        (1, 2, 2),
    ]
    assert all(torch.equal(each["denoised"], each["x"] / 2) for each in told)


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_sigmas_that_rise_are_for_the_encoder_run_alone(eta: float) -> None:
    rising, level = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0, 0.0])
    with pytest.raises(BadSigmas, match=f"from 0.5 to 1, with eta {eta:g}"):
        sample_student(gaussian, torch.ones(1, 2), rising, disable=True, eta=eta, noise_sampler=no_noise)
    sample_student(gaussian, torch.ones(1, 2), rising, disable=True, eta=0.0, noise_sampler=no_noise)
    silent = torch.zeros(1, 2)
    sample_student(gaussian, silent, level, disable=True, eta=eta, noise_sampler=lambda *_: silent)
