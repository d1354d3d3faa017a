# SPDX-License-Identifier: GPL-3.0-or-later
"""Parallel samplers of other papers with Euler steps, written small from their descriptions, to stand in the
same table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
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


def parataa(
    drift: Drift, x: Tensor, sigmas: Tensor, k: int, tolerance: float, memory: int = 3, ridge: float = 1e-3
) -> tuple[Tensor, int]:
    """ParaTAA (Tang et al. 2024): ParaDiGMS' iteration with triangular Anderson acceleration. With R_j what
    an iteration adds to the state x_j,

        x_j <- x_j + R_j - (DX_j + DR_j) gamma_j,    gamma_j = argmin sum_(i <= j) ||R_i - DR_i gamma||^2,

    where DX and DR are the changes over the last iterations. A state has converged when its own step would
    move it by at most tolerance sigma (RMS). Returns (result, rounds).
    """
    values, steps = sigmas.tolist(), len(sigmas) - 1
    begin, rounds = 0, 0
    states = [x] * (steps + 1)
    past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in states]
    while begin < steps:
        end = min(begin + k, steps)
        moves = [(values[j + 1] - values[j]) * drift(states[j], values[j]) for j in range(begin, end)]
        rounds += 1
        R: dict[int, Tensor] = {}
        fresh, good = states[begin], begin + 1
        for j, move in enumerate(moves, begin + 1):
            fresh = fresh + move
            R[j] = fresh - states[j]
            own = float((states[j - 1] + move - states[j]).square().mean().sqrt())
            good += j == good and j < end and own <= tolerance * max(values[j], values[-2])
        for j, residual in R.items():
            past[j] = [*past[j], (states[j], residual)][-memory:]
        corrections = {j: _anderson(past, R, j, good + 1, ridge) for j in range(good + 1, end + 1)}
        for j, residual in R.items():
            states[j] = states[j] + residual - corrections.get(j, 0.0)
        states[end + 1 :] = [states[end]] * (steps - end)
        begin = good
    return states[steps], rounds


def _anderson(
    past: Sequence[Sequence[tuple[Tensor, Tensor]]], R: dict[int, Tensor], j: int, first: int, ridge: float
) -> Tensor | float:
    """(DX_j + DR_j) gamma_j over the states ``first`` to j; 0 where there is no change to look at."""
    rows = range(first, j + 1)
    m = min(len(past[i]) for i in rows) - 1
    if m < 1:
        return 0.0
    DR = {i: torch.stack([past[i][q][1] - past[i][q - 1][1] for q in range(-m, 0)]).flatten(1) for i in rows}
    B = sum(DR[i] @ DR[i].T for i in rows) + ridge * torch.eye(m)
    gamma = torch.linalg.solve(B, sum(DR[i] @ R[i].flatten() for i in rows))
    change = [(past[j][q][0] - past[j][q - 1][0]) + (past[j][q][1] - past[j][q - 1][1]) for q in range(-m, 0)]
    return torch.einsum("q,q...->...", gamma, torch.stack(change))


def srds(drift: Drift, x: Tensor, sigmas: Tensor, k: int, iterations: int) -> tuple[Tensor, int]:
    """SRDS (Selvam et al. 2024): parareal iterations over about sqrt(N) blocks of the run,

        U_(i+1) <- F(U_i) + G(U_i new) - G(U_i),

    F the steps of a block, G one step over it. Returns (result, rounds): with k at a time, those first that
    the result waits for longest.
    """
    values, steps = sigmas.tolist(), len(sigmas) - 1
    length = round(steps**0.5)
    blocks = list(itertools.pairwise([*range(0, steps, length), steps]))
    clock, U = _Clock(k), [x]

    def evaluated(state: Tensor, j: int, after: int) -> tuple[Tensor, int]:
        return drift(state, values[j]), clock.round(after)

    known, G, ready = [], [], [0]
    for i, j in blocks:
        known.append(evaluated(U[-1], i, ready[-1]))
        G.append(U[-1] + (values[j] - values[i]) * known[-1][0])
        U.append(G[-1])
        ready.append(known[-1][1])
    for iteration in range(iterations):
        F, done = [], []
        for (i, j), u, (d, when) in zip(blocks, U, known, strict=False):
            for n in range(i, j):
                if n > i:
                    d, when = evaluated(u, n, when)
                u = u + (values[n + 1] - values[n]) * d
            F.append(u)
            done.append(when)
        for b, (i, j) in enumerate(blocks):
            if b <= iteration:
                U[b + 1], ready[b + 1] = F[b], done[b]
                continue
            known[b] = evaluated(U[b], i, ready[b])
            coarse = U[b] + (values[j] - values[i]) * known[b][0]
            U[b + 1], ready[b + 1] = F[b] + coarse - G[b], max(done[b], known[b][1])
            G[b] = coarse
    return U[-1], ready[-1]


class _Clock:
    """Rounds of at most k evaluations, each as soon as there is room after what it waits for."""

    def __init__(self, k: int) -> None:
        self._k, self._taken = k, dict[int, int]()

    def round(self, after: int) -> int:
        """The round of an evaluation that waits for the round ``after``; the first is 1."""
        at = after + 1
        while self._taken.get(at, 0) == self._k:
            at += 1
        self._taken[at] = self._taken.get(at, 0) + 1
        return at


def chords(
    drift: Drift, x: Tensor, sigmas: Tensor, starts: Sequence[int], result_of: int
) -> tuple[Tensor, int]:
    """CHORDS (Han et al. 2025): a core begins at each of the ``starts``, at a state that the core before it
    shoots there in one step; where a core comes to where the next began, the next is put right,

        x <- F + G(where the core before arrived) - G(where it began itself),

    with F its own step and G one step from where it began. ``result_of``: the core whose result is taken, 0
    the slow and exact one. Returns (result, rounds).
    """
    values, steps = sigmas.tolist(), len(sigmas) - 1
    begins: list[tuple[int, Tensor]] = [(0, x)]
    at, states = [0], [x]
    drifts: list[dict[int, tuple[Tensor, Tensor]]] = [{}]

    def step(core: int, j: int, to: int) -> Tensor:
        state, d = drifts[core][j]
        return state + (values[to] - values[j]) * d

    rounds = 0
    while len(at) <= result_of or at[result_of] < steps:
        rounds += 1
        active = [core for core in range(len(at)) if at[core] < steps]
        for core in active:
            drifts[core][at[core]] = states[core], drift(states[core], values[at[core]])
        for core in active:
            j, (began, _) = at[core], begins[core]
            if core == len(at) - 1 and j == began == starts[core] and core + 1 < len(starts):
                first = starts[core + 1]
                begins.append((first, step(core, j, first)))
                at.append(first)
                states.append(begins[-1][1])
                drifts.append({})
            states[core] = step(core, j, j + 1)
            if core and began in drifts[core - 1] and at[core - 1] - 1 == began:
                states[core] = states[core] + step(core - 1, began, j + 1) - step(core, began, j + 1)
                begins[core] = (j + 1, states[core])
            at[core] = j + 1
    return states[result_of], rounds


def relative_rms(result: Tensor, reference: Tensor) -> list[float]:
    """RMS distance over RMS, a row each."""
    return deviation(result, reference).tolist()
