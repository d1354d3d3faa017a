# SPDX-License-Identifier: GPL-3.0-or-later
"""What drafting is compared with: each peer's method, at its strictest, is the sequential Euler run."""

import pytest
import torch
from torch import Tensor

from dizzydiff.benchmarks._parallel_peers import chords, paradigms, parastep, parataa, srds

SIGMAS = torch.cat([torch.logspace(1, -1.5, 21, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
STEPS = len(SIGMAS) - 1
MODES = torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.4]], dtype=torch.float64)
START = SIGMAS[0] * torch.tensor([[0.3, -0.8]], dtype=torch.float64)


def drift(x: Tensor, sigma: float) -> Tensor:
    """(x - D) / sigma of three modes of width 0.2."""
    variance = sigma**2 + 0.04
    of_mode = (-(x[:, None] - MODES).square().sum(-1) / (2 * variance)).softmax(-1)
    mean = of_mode @ MODES
    return (x - mean - 0.04 / variance * (x - mean)) / sigma


def euler() -> Tensor:
    x = START
    for now, then in zip(SIGMAS.tolist(), SIGMAS.tolist()[1:], strict=False):
        x = x + (then - now) * drift(x, now)
    return x


STARTS = (0, 3, 7, 13)

RUNS = {
    "ParaDiGMS": lambda f: paradigms(f, START, SIGMAS, 4, 0.0),
    "ParaTAA": lambda f: parataa(f, START, SIGMAS, 4, 0.0),
    "SRDS": lambda f: srds(f, START, SIGMAS, 4, 5),
    "CHORDS": lambda f: chords(f, START, SIGMAS, STARTS, 0),
}


@pytest.mark.parametrize("name", RUNS)
def test_strictest_is_the_sequential_run(name: str) -> None:
    result, _ = RUNS[name](drift)
    torch.testing.assert_close(result, euler(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("loose", "rounds"),
    [
        (lambda f: paradigms(f, START, SIGMAS, 4, 0.05), None),
        (lambda f: parataa(f, START, SIGMAS, 4, 0.05), None),
        (lambda f: parastep(f, START, SIGMAS, 4), None),
        (lambda f: chords(f, START, SIGMAS, STARTS, 3), 3 + STEPS - STARTS[3]),
        (lambda f: chords(f, START, SIGMAS, STARTS, 2), 2 + STEPS - STARTS[2]),
    ],
)
def test_fewer_rounds_are_near_it(loose, rounds) -> None:
    result, used = loose(drift)
    assert used < STEPS
    assert rounds in (None, used)
    assert 0 < (result - euler()).norm() < 0.1 * euler().norm()


def test_srds_gets_nearer_with_every_iteration() -> None:
    errors = [float((srds(drift, START, SIGMAS, 4, n)[0] - euler()).norm()) for n in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.05 * errors[0]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_rounds_of_srds_hold_at_most_k_evaluations(k: int) -> None:
    made: list[float] = []

    def counted(x: Tensor, sigma: float) -> Tensor:
        made.append(sigma)
        return drift(x, sigma)

    _, rounds = srds(counted, START, SIGMAS, k, 1)
    assert rounds >= len(made) / k
    assert k > 1 or rounds == len(made)


def test_accelerated_iteration_solves_a_linear_run_sooner() -> None:
    sigmas = torch.linspace(4.0, 0.0, 33, dtype=torch.float64)
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    linear = lambda state, sigma: 0.8 * state  # noqa: E731
    plain, accelerated = (
        method(linear, x, sigmas, 32, 1e-4)[1]
        for method in (paradigms, lambda *args: parataa(*args, ridge=1e-9))
    )
    assert accelerated < plain
