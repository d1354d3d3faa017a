# SPDX-License-Identifier: GPL-3.0-or-later
"""Poisson noise: its law against the closed form of PFGM++, and what stays the seed's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from dizzydiff.benchmarks._poisson_tuned import PoissonDiffusion
from dizzydiff.noise.poisson import PoissonNoise, PoissonSteps, lengths, stretched
from dizzydiff.tiny import networks, train

SURE = 1e-4
"""A test of a right law fails once in 10,000 seeds, and the seeds are fixed."""


def draw(latent: dict, seed: int) -> Tensor:
    return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("D", [1, 2, 64, 2048])
@pytest.mark.parametrize("N", [3, 64])
def test_the_radius_follows_the_inverse_beta_law(D: int, N: int) -> None:
    rows = 2000
    noise = PoissonNoise(5, D, draw).generate_noise({"samples": torch.zeros(rows, N)}).double()
    share = noise.square().sum(1) / (noise.square().sum(1) + D)
    assert stats.kstest(share.numpy(), stats.beta(N / 2, D / 2).cdf).pvalue > SURE
    assert stats.kstest(noise[:, 0].numpy(), stats.t(D).cdf).pvalue > SURE


@given(st.integers(1, 1 << 12), st.integers(0, 2**63), st.integers(1, 5))
def test_it_points_where_the_seed_s_gaussian_noise_does(D: int, seed: int, rows: int) -> None:
    latent = {"samples": torch.zeros(rows, 4, 6, 6)}
    noise, gaussian = PoissonNoise(seed, D, draw).generate_noise(latent), draw(latent, seed)
    ratio = (noise / gaussian).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)
    assert (ratio > 0).all()
    assert torch.equal(noise, PoissonNoise(seed, D, draw).generate_noise(latent))


def test_a_large_D_is_gaussian_noise() -> None:
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    noise = PoissonNoise(1, 1 << 20, draw).generate_noise(latent)
    torch.testing.assert_close(noise, draw(latent, 1), rtol=2e-3, atol=0)


def test_every_noise_of_a_step_has_the_law_and_is_the_seed_s() -> None:
    x, D = torch.zeros(1, 4, 8, 8), 3

    def gaussian(x: Tensor, seed: int | None) -> object:
        generator = torch.Generator().manual_seed(seed or 0)
        return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator)

    steps = PoissonSteps(lambda *_, **__: x, D, gaussian)
    first, again, other = (steps.make_noise_sampler(x, seed) for seed in (7, 7, 8))
    plain = gaussian(x, 7)
    sigma = torch.tensor(1.0)
    squares = []
    for _ in range(2000):
        noise = first(sigma, sigma)
        assert torch.equal(noise, again(sigma, sigma)) and not torch.equal(noise, other(sigma, sigma))
        ratio = noise / plain(sigma, sigma)
        squares.append(D / float(ratio.mean()) ** 2)
    assert stats.kstest(squares, stats.chi2(D).cdf).pvalue > SURE


def test_rows_of_a_batch_are_stretched_apart() -> None:
    by = lengths(64, 3, torch.Generator().manual_seed(0))
    assert len(set(by)) == 3 and all(abs(each - 1) < 6 / math.sqrt(2 * 64) for each in by)
    rows = stretched(torch.ones(3, 2, 2), by)
    torch.testing.assert_close(rows[:, 0, 0], torch.tensor(by))


def test_a_model_is_trained_with_noise_of_the_law_and_asked_for_the_same() -> None:
    plain = train.Diffusion.of(networks.scheduler())
    nothing = torch.zeros(8, 4, 3, 3)
    (z, t, v), (gaussian, _, _) = (
        PoissonDiffusion(**vars(plain), D=D).noised(nothing, torch.Generator().manual_seed(3)) for D in (4, 0)
    )
    longer = (z / gaussian).flatten(1)
    torch.testing.assert_close(longer, longer[:, :1].expand_as(longer), rtol=1e-4, atol=0)
    assert longer[:, 0].std() > 0.1, "every picture's noise is of another length"
    noise = z / plain.sigma[t, None, None, None]
    torch.testing.assert_close(v, plain.alpha[t, None, None, None] * noise)
