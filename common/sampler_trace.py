# SPDX-License-Identifier: GPL-3.0-or-later
"""The trace of a sampler: every model call it will make, and its state at each, known before it samples.

Between two model calls a k-diffusion sampler does nothing but add up: its state is a linear combination of
the state of the call before, of predictions, and of noises. The coefficients depend on the sigmas alone, so
one run over symbols finds them all: a dry run on the host, of tensors with one number for each symbol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .dry_run import DryRun, DryRuns, Predict, SamplerRun, Untraceable

V = TypeVar("V")
MAX_LAG = 16
"""Model calls back from which a state may still depend on a prediction or a noise."""
MAX_DENOISED_TERMS = 4
"""A state that depends on more predictions is written in derivatives, where those are fewer."""
ROUNDING_ULPS = 100
"""Coefficients below so many roundings of a state's largest are rounding themselves."""
LINEARITY_RTOL = 1e-3
"""How far a state in single precision may be from its combination, relative to the sum of magnitudes."""


@dataclass(frozen=True)
class ModelCall:
    """The m-th model call D(x_m, sigma) of a sampler, and the state it is made at:

    x_m = x_coeff x_(m-1) + sum_i u_i x_i + sum_i w_i D_i + sum_q v_q xi_q.
    """

    step: int
    """The sampling step that makes it."""
    sigma: float
    noises_before: int
    """Noises drawn before it."""
    x_coeff: float = 0.0
    state_coeffs: tuple[tuple[int, float], ...] = ()
    """(call i, u_i): of samplers that remember derivatives (x_i - D_i) / sigma_i."""
    denoised_coeffs: tuple[tuple[int, int, float], ...] = ()
    """(call i, part of its prediction: 0 denoised or 1 uncond, w_i)."""
    noise_coeffs: tuple[tuple[int, float], ...] = ()
    """(noise q, v_q)."""

    def terms(self, m: int, x: Mapping[int, V], D: Mapping[int, Sequence[V]]) -> list[tuple[float, V]]:
        """(coefficient, vector) of all terms but the noises, where this is the m-th call.

        A prediction of one part is both denoised and uncond.
        """
        of_D = [(w, D[i][min(part, len(D[i]) - 1)]) for i, part, w in self.denoised_coeffs]
        return [(self.x_coeff, x[m - 1]), *((u, x[i]) for i, u in self.state_coeffs), *of_D]


@dataclass(frozen=True)
class Trace:
    """All model calls of a run, and the (sigma, sigma_next) that each of its noises is drawn for."""

    calls: tuple[ModelCall, ...]
    noise_sigmas: tuple[tuple[float, float], ...]

    @property
    def stochastic(self) -> bool:
        """Whether any state holds noise that was drawn on the way; some samplers draw it for nothing."""
        return any(call.noise_coeffs for call in self.calls)

    @property
    def rising(self) -> bool:
        """Whether the run leads from a picture to noise."""
        return self.calls[-1].sigma > self.calls[0].sigma

    def oldest(self, n: int) -> tuple[int, int]:
        """The oldest (prediction, noise) on which the states of the calls after the n-th depend."""
        ahead = self.calls[n + 1 : n + 1 + MAX_LAG]
        states = (i for call in ahead for i, _ in call.state_coeffs)
        predictions = (i for call in ahead for i, _, _ in call.denoised_coeffs)
        noises = (q for call in ahead for q, _ in call.noise_coeffs)
        first_noise = self.calls[n].noises_before
        return min([*states, *predictions], default=n), min(first_noise, min(noises, default=first_noise))


def trace(run: SamplerRun, stand_in: Callable[[Predict], Any], sigmas: Tensor, ndim: int) -> Trace:
    """All model calls of a run over ``sigmas`` [steps + 1] for states of ``ndim`` dimensions.

    ``stand_in(predict)`` makes a model that the sampler accepts. Raises :class:`Untraceable` for samplers
    whose calls depend on predictions (adaptive steps), or whose states are not linear in them.
    """
    subject, generator = DryRuns(run, stand_in, sigmas.cpu()), torch.Generator().manual_seed(0)
    predictions: list[Tensor] = []
    noises: list[Tensor] = []

    def number(kept: list[Tensor], *parts: int) -> Tensor:
        shape = [*parts, *[1] * ndim]
        kept.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(sigmas.dtype))
        return kept[-1].clone()

    tried = subject.dry_run(number([]), lambda m, x, sigma: number(predictions, 2), lambda q: number(noises))
    if any(state.shape != tried.states[0].shape for state in tried.states):
        raise Untraceable("the size of its state changes")
    steps = tried.steps(len(sigmas) - 1)
    if not all(math.isfinite(sigma) and sigma > 0 for sigma, _ in tried.calls):
        raise Untraceable("it calls the model at sigmas that are not above zero")
    values = _Values.of(tried, predictions, noises, sigmas.dtype)

    def coefficients(derivatives: bool) -> tuple[Tensor, Tensor]:
        """x_coeff [N] and the coefficients [N, 2 N + Q] of each state, checked against the numbers' run."""
        found = _recurrence(_symbolic_states(subject, ndim, tried, derivatives))
        if not _is_linear(*found, values.x, values.symbols(derivatives)):
            raise Untraceable(_why_not_linear(subject, ndim))
        return found

    (x_coeffs, coeffs), derivatives = coefficients(False), False
    if coeffs[:, : 2 * len(tried.calls)].count_nonzero(1).max() > MAX_DENOISED_TERMS:
        others = coefficients(True)
        if derivatives := bool(others[1].count_nonzero() < coeffs.count_nonzero()):
            x_coeffs, coeffs = others
    calls = [
        ModelCall(step, sigma, noises_before, x_coeff)
        for step, (sigma, noises_before), x_coeff in zip(steps, tried.calls, x_coeffs.tolist(), strict=True)
    ]
    for m, column in coeffs.nonzero().tolist():
        calls[m] = _with_term(calls, m, column, float(coeffs[m, column]), derivatives)
    return Trace(tuple(calls), tuple(tried.noise_sigmas))


@dataclass(frozen=True)
class _Values:
    """The numbers of a dry run: states x [N], predictions D [N, 2], noises xi [Q], sigma [N]."""

    x: Tensor
    D: Tensor
    xi: Tensor
    sigma: Tensor

    @classmethod
    def of(
        cls, tried: DryRun, predictions: Sequence[Tensor], noises: Sequence[Tensor], dtype: torch.dtype
    ) -> _Values:
        x, xi = (torch.tensor([float(n) for n in numbers], dtype=dtype) for numbers in (tried.states, noises))
        sigma = torch.tensor([sigma for sigma, _ in tried.calls], dtype=dtype)
        return cls(x, torch.stack([prediction.flatten() for prediction in predictions]), xi, sigma)

    def symbols(self, derivatives: bool) -> Tensor:
        """What the symbols but the first stand for: [2 N + Q]."""
        predicted = (self.x[:, None] - self.D) / self.sigma[:, None] if derivatives else self.D
        return torch.cat([predicted.flatten(), self.xi])


def _symbolic_states(subject: DryRuns, ndim: int, tried: DryRun, derivatives: bool) -> Tensor:
    """The states [N, symbols] of a run over symbols: the first state, two parts of each prediction, each
    noise.

    A prediction's symbol is D, or with ``derivatives`` (x - D) / sigma.
    """
    calls = len(tried.calls)
    symbols = 1 + 2 * calls + len(tried.noise_sigmas)

    def symbol(index: int) -> Tensor:
        unit = torch.zeros([1] * (ndim - 1) + [symbols], dtype=subject.sigmas.dtype)
        unit[..., index : index + 1] = 1
        return unit

    def predict(m: int, x: Tensor, sigma: Tensor) -> Tensor:
        parts = torch.stack([symbol(1 + 2 * m), symbol(2 + 2 * m)])
        return x - sigma[0] * parts if derivatives else parts

    symbolic = subject.dry_run(symbol(0), predict, lambda q: symbol(1 + 2 * calls + q))
    if symbolic.calls != tried.calls:
        raise Untraceable("where it calls the model depends on what the model predicted")
    return torch.stack([state.flatten() for state in symbolic.states])


def _with_term(calls: Sequence[ModelCall], m: int, column: int, coeff: float, derivatives: bool) -> ModelCall:
    """The m-th call with one more term of its state: a column of the coefficients."""
    call, earliest = calls[m], max(m - MAX_LAG, 0)
    i, part = divmod(column, 2)
    if earliest <= i < len(calls):
        if not derivatives:
            return replace(call, denoised_coeffs=(*call.denoised_coeffs, (i, part, coeff)))
        u = coeff / calls[i].sigma
        return replace(
            call,
            state_coeffs=(*call.state_coeffs, (i, u)),
            denoised_coeffs=(*call.denoised_coeffs, (i, part, -u)),
        )
    q = column - 2 * len(calls)
    if q >= calls[earliest].noises_before:
        return replace(call, noise_coeffs=(*call.noise_coeffs, (q, coeff)))
    raise Untraceable("its states depend on predictions from long before")


def _recurrence(rows: Tensor) -> tuple[Tensor, Tensor]:
    """x_coeff [N] and the coefficients [N, symbols - 1] of what is added, of states [N, symbols].

    The first symbol is the first state: what is left of it tells how much of the state before is.
    """
    eps = torch.finfo(rows.dtype).eps
    x_coeffs, coeffs = torch.zeros_like(rows[:, 0]), torch.zeros_like(rows[:, 1:])
    before, after = rows[:-1], rows[1:]
    remembers = before[:, 0].abs() > eps**2 * before.abs().amax(1)
    x_coeffs[1:] = torch.where(remembers, after[:, 0] / before[:, 0], 0.0)
    added = (after - x_coeffs[1:, None] * before)[:, 1:]
    rounding = ROUNDING_ULPS * eps * after.abs().amax(1, keepdim=True)
    coeffs[1:] = torch.where(added.abs() > rounding, added, 0.0)
    return x_coeffs, coeffs


def _is_linear(x_coeffs: Tensor, coeffs: Tensor, states: Tensor, symbols: Tensor) -> bool:
    """Whether states [N] are what the recurrence makes of their symbols."""
    carried = x_coeffs[1:] * states[:-1]
    off = (states[1:] - carried - coeffs[1:] @ symbols).abs()
    return bool((off <= LINEARITY_RTOL * (carried.abs() + coeffs[1:].abs() @ symbols.abs())).all())


def _why_not_linear(subject: DryRuns, ndim: int) -> str:
    """From 0, with predictions and noises 0, a linear sampler stays at 0."""
    zero = torch.zeros([1] * ndim, dtype=subject.sigmas.dtype)
    still = subject.dry_run(
        zero.clone(), lambda m, x, sigma: torch.zeros_like(x).expand(2, *x.shape), lambda q: zero.clone()
    )
    if any(state.count_nonzero() for state in still.states):
        return "it adds noise of a kind of its own"
    return "its states are not linear in what the model predicts"
