# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs of a sampler tell of a model, against Gaussian data, of which every trajectory is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dizzydiff.stability.linearized import linearize
from dizzydiff.stability.watched import (
    ENOUGH,
    FEW,
    MOST_NUMBERS,
    Run,
    added,
    kept_numbers,
    learned_from,
    profile_of,
    why_not,
)

SIGMA_MAX, SIGMA_MIN, WIDTH = 10.0, 0.02, 0.5


def gaussian_run(steps: int, pictures: int, seed: int = 0) -> Run:
    """Along the exact solution: x = n sqrt(WIDTH^2 + sigma^2), D = x WIDTH^2 / (WIDTH^2 + sigma^2)."""
    n = torch.randn(pictures, 16, generator=torch.Generator().manual_seed(seed)).double()
    sigmas = torch.logspace(math.log10(SIGMA_MAX), math.log10(0.1), steps).double()
    scale = (WIDTH**2 + sigmas**2).sqrt()[:, None, None]
    return Run(sigmas, n * scale[0], n * WIDTH**2 / scale)


def seen(pictures: int):
    return profile_of(gaussian_run(20, pictures), SIGMA_MAX, SIGMA_MIN, flow=False)


@given(st.integers(14, 60), st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_between_its_steps_a_run_tells_the_predictions_of_the_model(steps: int, pictures: int) -> None:
    run = gaussian_run(steps, pictures)
    profile = profile_of(run, SIGMA_MAX, SIGMA_MIN, flow=False)
    measured = profile.sigmas >= float(run.sigmas[-1])
    true = WIDTH**2 / (WIDTH**2 + profile.sigmas**2).sqrt() * run.start.norm(dim=-1)[:, None]
    true /= math.hypot(WIDTH, SIGMA_MAX)
    error = (profile.denoised.norm(dim=-1) - true)[:, measured].abs().max()
    assert float(error) < 0.02 * float(true.max())
    assert profile.calls == 0


def test_behind_its_last_step_predictions_go_on_as_they_went() -> None:
    """By a straight line in sigma, for as many sigmas as there are."""
    run = gaussian_run(20, 2)
    line = Run(run.sigmas, run.start, run.start[None] * (2 - run.sigmas[:, None, None]))
    profile = profile_of(line, SIGMA_MAX, SIGMA_MIN, flow=False)
    behind = profile.sigmas < float(run.sigmas[-1])
    expected = run.start.norm(dim=-1)[:, None] * (2 - profile.sigmas[behind])
    assert int(behind.sum()) > 3
    torch.testing.assert_close(profile.denoised.norm(dim=-1)[:, behind], expected, rtol=1e-6, atol=0)


def test_a_watched_model_ends_where_its_pictures_did() -> None:
    run = gaussian_run(40, 3)
    end = linearize(profile_of(run, SIGMA_MAX, SIGMA_MIN, flow=False)).end.norm(dim=-1)
    picture = run.start.norm(dim=-1) * WIDTH / math.hypot(WIDTH, SIGMA_MAX)
    torch.testing.assert_close(end, picture, rtol=0.02, atol=0)


def test_sigmas_are_learned_twice_and_then_stay() -> None:
    counts = []
    known = None
    for _ in range(14):
        known = added(known, seen(1))
        learned = learned_from(known)
        counts.append(0 if learned is None else len(learned.states))
    assert counts == [0] * (FEW - 1) + [FEW] * (ENOUGH - FEW) + [ENOUGH] * (15 - ENOUGH)


def test_later_pictures_do_not_replace_those_that_sigmas_were_learned_from() -> None:
    first = added(seen(FEW), seen(20))
    assert len(first.states) == ENOUGH
    assert torch.equal(learned_from(first).states[:FEW], seen(FEW).states)


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([10.0, 5.0, 1.0, 0.0], "3 steps"),
        ([*torch.linspace(4, 0.1, 20).tolist(), 0.0], "does not begin at pure noise"),
        ([*torch.linspace(10, 0.1, 20).tolist()], "do not fall to 0"),
        (
            [*torch.linspace(10, 1, 10).tolist(), *torch.linspace(2, 0.1, 10).tolist(), 0.0],
            "do not fall to 0",
        ),
    ],
)
def test_runs_that_tell_too_little_are_named(sigmas: list[float], words: str) -> None:
    assert words in str(why_not(torch.tensor(sigmas), SIGMA_MAX))


def test_an_ordinary_run_is_watched() -> None:
    assert why_not(torch.tensor([*torch.linspace(10, 0.1, 20).tolist(), 0.0]), SIGMA_MAX) is None


@given(st.integers(1, 3 * MOST_NUMBERS))
@settings(deadline=None, max_examples=10)
def test_of_large_latents_a_bounded_part_is_kept(numel: int) -> None:
    kept = kept_numbers(numel)
    assert len(kept) == min(numel, MOST_NUMBERS) and len(kept.unique()) == len(kept)
    assert int(kept.min()) >= 0 and int(kept.max()) < numel
    assert torch.equal(kept, kept_numbers(numel))


def test_lengths_of_what_is_kept_stand_for_those_of_the_whole() -> None:
    x = torch.randn(4, 64, 64, 40, generator=torch.Generator().manual_seed(1)).cumsum(2).flatten(1)
    part = x[:, kept_numbers(x[0].numel())].square().mean(1).sqrt()
    torch.testing.assert_close(part, x.square().mean(1).sqrt(), rtol=0.01, atol=0)
