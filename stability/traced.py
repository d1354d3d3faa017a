# SPDX-License-Identifier: GPL-3.0-or-later
"""Any sampler as a solver: its trace over a grid, replayed in a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.alpha import Alpha
from ..common.sampler_trace import ModelCall, Trace
from .solvers import DPMPP_2M, EULER, HEUN, Model, Solver

SAME_STEPS_RTOL = 1e-4
"""Of the ends of two solvers over a few steps: single precision's rounding."""
Tracer = Callable[[Tensor], Trace]
"""sigmas [N + 1] -> the trace of a sampler over them; raises Untraceable."""


@dataclass(frozen=True)
class TracedSolver(Solver):
    """A sampler known by its trace. Step, order and memory are those of the plain solver that is most like
    it; they serve to find grids to start from.
    """

    like: Solver
    tracer: Tracer
    alpha: Alpha[float]

    def solve(self, model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
        """As :meth:`Solver.solve`; one trace a grid. Raises Untraceable."""
        return replay([self.tracer(grid) for grid in sigmas], model, x, self.alpha)


def traced_solver(name: str, tracer: Tracer, alpha: Alpha[float], sigmas: Tensor) -> Solver:
    """The solver that a sampler is, seen in its trace over ``sigmas``: a plain one where it takes the same
    steps, which costs no dry runs. Raises Untraceable.
    """
    trace = tracer(sigmas)
    like = most_like(trace)
    x = sigmas.new_ones(1, 1, 1)
    same = torch.allclose(
        replay([trace], _nonlinear, x, alpha), like.solve(_nonlinear, x, sigmas[None]), rtol=SAME_STEPS_RTOL
    )
    if same:
        return like
    return TracedSolver(
        name, like.step, like.order, like.memory, like.unevenness_price, like=like, tracer=tracer, alpha=alpha
    )


def _nonlinear(x: Tensor, sigma: Tensor) -> Tensor:
    """A model in which different steps end differently."""
    return torch.sin(3 * x + sigma.log()[:, None, None])


def most_like(trace: Trace) -> Solver:
    """Heun's where a step makes several model calls, DPM-Solver++(2M) where it reads predictions of steps
    before, else Euler's.
    """
    steps = [call.step for call in trace.calls]
    if len(set(steps)) < len(steps):
        return HEUN
    remembers = any(i < m - 1 for m, call in enumerate(trace.calls) for i, *_ in call.denoised_coeffs)
    return DPMPP_2M if remembers else EULER


def replay(traces: Sequence[Trace], model: Model, x: Tensor, alpha: Alpha[float]) -> Tensor:
    """The last predictions [G, P, r] of runs from x [1 or G, P, r], one trace each, all of as many calls:

    x_m = x_coeff x_(m-1) + sum_i u_i x_i + sum_i w_i D_i + (what noise adds).
    """
    states: list[Tensor] = []
    predictions: list[Tensor] = []
    for m, calls in enumerate(zip(*(trace.calls for trace in traces), strict=True)):
        if m:
            before = [trace.calls[:m] for trace in traces]
            x = _state(calls, before, states, predictions, alpha)
        states.append(x)
        predictions.append(model(x, torch.tensor([call.sigma for call in calls], dtype=x.dtype)))
    return predictions[-1]


def _state(
    calls: Sequence[ModelCall],
    before: Sequence[Sequence[ModelCall]],
    states: Sequence[Tensor],
    predictions: Sequence[Tensor],
    alpha: Alpha[float],
) -> Tensor:
    """The state [G, P, r] of the next call of each run.

    Fresh noise xi is taken along n = (x - alpha D) / sigma, the noise that the state before holds, in the
    strength that gives the sum the variance of both: a stochastic step without error in law has none here.
    """
    m = len(states)
    of_x, of_D = ([[0.0] * m for _ in calls] for _ in range(2))
    for g, call in enumerate(calls):
        of_x[g][m - 1] += call.x_coeff
        for i, u in call.state_coeffs:
            of_x[g][i] += u
        for i, _, w in call.denoised_coeffs:
            of_D[g][i] += w
        fresh = sum(v**2 for _, v in call.noise_coeffs)
        if fresh:
            sigmas = [earlier.sigma for earlier in before[g]]
            held = sum(u * sigma for u, sigma in zip(of_x[g], sigmas, strict=True))
            along = ((held**2 + fresh) ** 0.5 - held) / sigmas[-1]
            of_x[g][m - 1] += along
            of_D[g][m - 1] -= along * alpha(sigmas[-1])
    terms = zip((*zip(*of_x, strict=True), *zip(*of_D, strict=True)), (*states, *predictions), strict=True)
    parts = [
        torch.tensor(coeffs, dtype=states[0].dtype)[:, None, None] * value
        for coeffs, value in terms
        if any(coeffs)
    ]
    return torch.stack(torch.broadcast_tensors(*parts)).sum(0)
