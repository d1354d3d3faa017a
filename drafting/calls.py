# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sampler will ask its model and where it will stand when it asks, known before it samples: two dry
runs on the host.

Between two questions a sampler does nothing but add up: its state is a linear combination of the state it
asked at before, of what it was answered, and of the noises it drew. The weights depend on the sigmas alone,
so one run over symbols finds them all.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .errors import Undraftable

T = TypeVar("T")
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""noise(sigma, sigma_next): a sample of the state's shape."""
Callback = Callable[[dict[str, Any]], None]
Answer = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma) -> a prediction [2, ...]: denoised, and uncond, which the ``*_cfg_pp`` samplers read."""

MEMORY = 16
"""Questions back from which a state may still depend on an answer or a noise."""
MOST = 2000
"""Questions of a run: every state takes a weight for each of them, and adaptive steps may never end on
answers made of numbers.
"""
FEW = 4
"""A state that depends on more answers is foretold from derivatives, if those are fewer."""
ROUNDING = 100
"""Weights below so many roundings of a state's largest are rounding themselves."""
NOT_ONE_BY_ONE = "it does not report its steps one by one"
LINEAR = 1e-3
"""How far a state in single precision may be from the combination of its terms, relative to the sum of their
magnitudes.
"""


class SamplerRun(Protocol):
    """A k-diffusion sampler function with everything bound but what a dry run changes."""

    def __call__(
        self, model: Any, x: Tensor, sigmas: Tensor, callback: Callback | None, noise: NoiseSampler, /
    ) -> Tensor: ...


@dataclass(frozen=True)
class Call:
    """One question D(x, sigma) of a sampler, and the state it is asked at, which is a linear combination:

    x_m = kept x_(m-1) + sum_i u_i x_i + sum_i w_i D_i + sum_q v_q xi_q.
    """

    step: int
    """The sampling step that asks."""
    sigma: float
    noises: int
    """Noises drawn before it."""
    kept: float = 0.0
    states: tuple[tuple[int, float], ...] = ()
    """(question i, u_i): of samplers that remember derivatives (x_i - D_i) / sigma_i."""
    answers: tuple[tuple[int, int, float], ...] = ()
    """(question i, part of its prediction: 0 denoised or 1 uncond, w_i)."""
    draws: tuple[tuple[int, float], ...] = ()
    """(noise q, v_q)."""

    def terms(self, m: int, x: Mapping[int, T], D: Mapping[int, Sequence[T]]) -> list[tuple[float, T]]:
        """All terms but the noises, where this is the m-th question. A prediction of one part is both
        denoised and uncond.
        """
        answers = [(w, D[i][min(part, len(D[i]) - 1)]) for i, part, w in self.answers]
        return [(self.kept, x[m - 1]), *((u, x[i]) for i, u in self.states), *answers]


@dataclass(frozen=True)
class Plan:
    """All questions of a run, and the (sigma, sigma_next) of all its noises."""

    calls: tuple[Call, ...]
    asks: tuple[tuple[float, float], ...]

    @property
    def stochastic(self) -> bool:
        return bool(self.asks)

    def oldest(self, n: int) -> tuple[int, int]:
        """The oldest (answer, noise) on which the states of the questions after the n-th depend."""
        ahead = self.calls[n + 1 : n + 1 + MEMORY]
        answers = (
            i for call in ahead for i in (*(i for i, _ in call.states), *(i for i, _, _ in call.answers))
        )
        draws = (q for call in ahead for q, _ in call.draws)
        return min(answers, default=n), min(self.calls[n].noises, min(draws, default=self.calls[n].noises))


@dataclass
class _Seen:
    """What a dry run did: (sigma, noises before) and state of every question, the noises' sigmas, the first
    question of every step.
    """

    questions: list[tuple[float, int]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    asks: list[tuple[float, float]] = field(default_factory=list)
    first_of_step: dict[int, int] = field(default_factory=dict)

    def steps(self, of: int) -> list[int]:
        """The step of every question. Raises :class:`Undraftable` unless each of the ``of`` steps reports
        after its first.
        """
        if sorted(self.first_of_step) != list(range(of)) or self.first_of_step.get(0) != 0:
            raise Undraftable(NOT_ONE_BY_ONE)
        starts = sorted(self.first_of_step.values())
        return [bisect.bisect_right(starts, question) - 1 for question in range(len(self.questions))]


def _dry_run(
    run: SamplerRun,
    stand_in: Callable[[Answer], Any],
    sigmas: Tensor,
    x: Tensor,
    answer: Callable[[int, Tensor, Tensor], Tensor],
    draw: Callable[[int], Tensor],
) -> _Seen:
    seen = _Seen()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        if len(seen.questions) == MOST:
            raise Undraftable(f"it asks more than {MOST} questions")
        seen.questions.append((float(sigma[0]), len(seen.asks)))
        seen.states.append(x.clone())
        return answer(len(seen.questions) - 1, x, sigma)

    def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        seen.asks.append((float(sigma), float(sigma_next)))
        return draw(len(seen.asks) - 1)

    def callback(report: dict[str, Any]) -> None:
        if report["i"] >= len(sigmas) - 1:
            raise Undraftable(NOT_ONE_BY_ONE)
        seen.first_of_step[int(report["i"])] = len(seen.questions) - 1

    with torch.random.fork_rng(devices=[]):
        run(stand_in(model), x, sigmas.clone(), callback, noise)  # some samplers write into their sigmas
    return seen


def plan(run: SamplerRun, stand_in: Callable[[Answer], Any], sigmas: Tensor, ndim: int) -> Plan:
    """All questions of a run over ``sigmas`` [steps + 1] for states of ``ndim`` dimensions.

    ``stand_in(answer)`` makes a model that the sampler accepts. Raises :class:`Undraftable` for samplers that
    cannot be foretold: where they ask depends on what they were answered (adaptive steps), or their states
    are not linear in it.
    """
    sigmas, generator = sigmas.cpu(), torch.Generator().manual_seed(0)
    answers: list[Tensor] = []
    draws: list[Tensor] = []

    def number(kept: list[Tensor], *parts: int) -> Tensor:
        kept.append(
            torch.randn([*parts, *[1] * ndim], generator=generator, dtype=torch.float64).to(sigmas.dtype)
        )
        return kept[-1].clone()

    tried = _dry_run(
        run, stand_in, sigmas, number([]), lambda m, x, sigma: number(answers, 2), lambda q: number(draws)
    )
    steps, questions = tried.steps(len(sigmas) - 1), len(tried.questions)
    if not all(math.isfinite(sigma) and sigma > 0 for sigma, _ in tried.questions):
        raise Undraftable("it asks at sigmas that are not above zero")
    D = torch.stack([number.flatten() for number in answers])
    x, xi = (
        torch.tensor([float(number) for number in numbers], dtype=sigmas.dtype)
        for numbers in (tried.states, draws)
    )
    sigma = torch.tensor([sigma for sigma, _ in tried.questions], dtype=sigmas.dtype)

    def weigh(derivatives: bool) -> tuple[Tensor, Tensor]:
        kept, weights = _recurrence(_symbols(run, stand_in, sigmas, ndim, tried, derivatives))
        _check(
            kept,
            weights,
            x,
            torch.cat([((x[:, None] - D) / sigma[:, None] if derivatives else D).flatten(), xi]),
        )
        return kept, weights

    (kept, weights), derivatives = weigh(False), False
    if weights[:, : 2 * questions].count_nonzero(1).max() > FEW:
        others = weigh(True)
        if derivatives := bool(others[1].count_nonzero() < weights.count_nonzero()):
            kept, weights = others
    calls = [
        Call(step, sigma, noises, share)
        for step, (sigma, noises), share in zip(steps, tried.questions, kept.tolist(), strict=True)
    ]
    for m, column in weights.nonzero().tolist():
        calls[m] = _with_term(calls, m, column, float(weights[m, column]), derivatives)
    return Plan(tuple(calls), tuple(tried.asks))


def _symbols(
    run: SamplerRun,
    stand_in: Callable[[Answer], Any],
    sigmas: Tensor,
    ndim: int,
    tried: _Seen,
    derivatives: bool,
) -> Tensor:
    """The states [N, symbols] of a run over symbols: the first state, two parts of each answer, each noise.

    An answer's symbol is D, or with ``derivatives`` (x - D) / sigma.
    """
    questions = len(tried.questions)

    def symbol(index: int) -> Tensor:
        at = torch.zeros([1] * (ndim - 1) + [1 + 2 * questions + len(tried.asks)], dtype=sigmas.dtype)
        at[..., index : index + 1] = 1
        return at

    def answer(m: int, x: Tensor, sigma: Tensor) -> Tensor:
        symbols = torch.stack([symbol(1 + 2 * m), symbol(2 + 2 * m)])
        return x - sigma[0] * symbols if derivatives else symbols

    foretold = _dry_run(run, stand_in, sigmas, symbol(0), answer, lambda q: symbol(1 + 2 * questions + q))
    if foretold.questions != tried.questions:
        raise Undraftable("where it asks depends on what it was answered")
    return torch.stack([state.flatten() for state in foretold.states])


def _with_term(calls: list[Call], m: int, column: int, weight: float, derivatives: bool) -> Call:
    """The m-th call with one more term of its state: a column of the weights."""
    call, past = calls[m], max(m - MEMORY, 0)
    i, part = divmod(column, 2)
    if i < len(calls) and i >= past:
        if not derivatives:
            return replace(call, answers=(*call.answers, (i, part, weight)))
        share = weight / calls[i].sigma
        return replace(call, states=(*call.states, (i, share)), answers=(*call.answers, (i, part, -share)))
    q = column - 2 * len(calls)
    if q >= calls[past].noises:
        return replace(call, draws=(*call.draws, (q, weight)))
    raise Undraftable("its states depend on what it was answered long before")


def _recurrence(rows: Tensor) -> tuple[Tensor, Tensor]:
    """kept [N] and the weights [N, symbols - 1] of what is added, of states [N, symbols] whose first symbol
    is the first state.
    """
    kept, weights, eps = (
        torch.zeros_like(rows[:, 0]),
        torch.zeros_like(rows[:, 1:]),
        torch.finfo(rows.dtype).eps,
    )
    before, after = rows[:-1], rows[1:]
    remembers = before[:, 0].abs() > eps**2 * before.abs().amax(1)
    kept[1:] = torch.where(remembers, after[:, 0] / before[:, 0], 0.0)
    added = (after - kept[1:, None] * before)[:, 1:]
    weights[1:] = torch.where(added.abs() > ROUNDING * eps * after.abs().amax(1, keepdim=True), added, 0.0)
    return kept, weights


def _check(kept: Tensor, weights: Tensor, states: Tensor, values: Tensor) -> None:
    """Raise :class:`Undraftable` unless states [N] are what the recurrence makes of the ``values`` of its
    symbols.
    """
    carried = kept[1:] * states[:-1]
    off = (states[1:] - carried - weights[1:] @ values).abs()
    if not (off <= LINEAR * (carried.abs() + weights[1:].abs() @ values.abs())).all():
        raise Undraftable("its states are not linear in what it is answered")
