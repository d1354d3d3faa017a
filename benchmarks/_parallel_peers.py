# SPDX-License-Identifier: GPL-3.0-or-later
"""Parallel samplers of other papers with Euler steps, written small from their descriptions, to stand in the
same table.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..compare.metrics import deviation

Drift = Callable[[Tensor, float], Tensor]
"""(x - D(x, sigma)) / sigma."""


def paradigms(drift: Drift, x: Tensor, sigmas: Tensor, k: int, tolerance: float) -> tuple[Tensor, int]:
    """ParaDiGMS (Shih et al. 2023): Picard iterations on a window of k steps that slides past what has
    converged.

    A state has converged when an iteration moves it by less than tolerance sigma (RMS). Returns (result,
    rounds).
    """
    values, steps = sigmas.tolist(), len(sigmas) - 1
    begin, rounds = 0, 0
    states = [x] * (k + 1)
    while begin < steps:
        end = min(begin + k, steps)
        drifts = [drift(states[j - begin], values[j]) for j in range(begin, end)]
        rounds += 1
        fresh = [states[0]]
        for j, d in enumerate(drifts, begin):
            fresh.append(fresh[-1] + (values[j + 1] - values[j]) * d)
        moved = [
            float((new - old).square().mean().sqrt()) for new, old in zip(fresh[1:], states[1:], strict=False)
        ]
        good = 1
        while good < len(moved) and moved[good - 1] <= tolerance * max(values[begin + good], values[-2]):
            good += 1
        states = fresh[good:] + [fresh[-1]] * (k + 1 - len(fresh[good:]))
        begin += good
    return states[0], rounds


def parastep(drift: Drift, x: Tensor, sigmas: Tensor, k: int, warm_up: int = 5) -> tuple[Tensor, int]:
    """ParaStep (Wang et al. 2025): k ranks a round; each reaches its step with the noise it predicted itself
    k steps earlier.
    """
    values, steps = sigmas.tolist(), len(sigmas) - 1
    old: list[Tensor] = []
    rounds = i = 0
    while i < steps:
        states = 1 if i < warm_up else min(k, steps - i)
        drafts = [x]
        for j in range(i, i + states - 1):
            drafts.append(drafts[-1] + (values[j + 1] - values[j]) * old[j - k])
        fresh = [drift(draft, values[i + n]) for n, draft in enumerate(drafts)]
        for j, d in enumerate(fresh, i):
            x = x + (values[j + 1] - values[j]) * d
        old += fresh
        i, rounds = i + states, rounds + 1
    return x, rounds


def relative_rms(result: Tensor, reference: Tensor) -> list[float]:
    """RMS distance over RMS, a row each."""
    return deviation(result, reference).tolist()
