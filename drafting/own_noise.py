# SPDX-License-Identifier: GPL-3.0-or-later
"""Which noise a sampler function draws by itself, found by running it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import torch
from torch import Tensor

from ..common.dry_run import NoiseSampler
from ..common.sampler_trace import Trace
from .errors import Undraftable

RTOL = 1e-3
"""RMS of the difference over RMS, between the noise of a run and that of a noise sampler."""
Make = Callable[[], NoiseSampler]


class _Seen(Exception):
    """Ends a run once its first noise is seen."""


def own_noise(
    function: Callable[..., Tensor],
    run: Callable[[Any, Tensor, Tensor], Any],
    found: Trace,
    *,
    x: Tensor,
    sigmas: Tensor,
    seed: int | None,
) -> NoiseSampler:
    """The noise sampler that ``function`` makes for itself where it is given none.

    run(predict, x, sigmas): a run of ``function`` on a model whose predictions [2, ...] are predict(x,
    sigma). Of its ``make_noise_sampler(x, seed)``, if it has one, and those that k-diffusion has, in the
    function's own module first, the one whose noise its run shows; a function that another pack replaced is
    asked as any other. Raises :class:`Undraftable` where none does.
    """
    if not found.stochastic:
        return _never
    with _global_noise_untouched(x, seed):
        shown, m = _first_noise(run, found, x, sigmas)
    for make in _candidates(function, x, sigmas, seed):
        with _global_noise_untouched(x, seed):
            drawn = _combined(make(), found, m, sigmas)
        if float((drawn - shown).square().mean()) <= RTOL**2 * float(shown.square().mean()):
            return make()
    raise Undraftable("it draws noise of a kind of its own")


def _first_noise(
    run: Callable[[Any, Tensor, Tensor], Any], found: Trace, x: Tensor, sigmas: Tensor
) -> tuple[Tensor, int]:
    """The state of a run from 0 on a model that predicts 0, at the first call whose state holds noise."""
    first = next(m for m, call in enumerate(found.calls) if call.noise_coeffs)
    calls, states = 0, list[Tensor]()

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        if calls == first:
            states.append(x)
            raise _Seen
        calls += 1
        return torch.zeros_like(x).expand(2, *x.shape)

    try:
        run(predict, torch.zeros_like(x), sigmas.clone())
    except _Seen:
        return states[0], first
    raise Undraftable("it steps otherwise than in its dry run")


def _combined(noise: NoiseSampler, found: Trace, m: int, sigmas: Tensor) -> Tensor:
    """sum_q v_q xi_q of the m-th call, from a noise sampler's first noises."""
    last = max(q for q, _ in found.calls[m].noise_coeffs)
    drawn = [noise(*sigmas.new_tensor(pair)) for pair in found.noise_sigmas[: last + 1]]
    return torch.stack([v * drawn[q] for q, v in found.calls[m].noise_coeffs]).sum(0)


def _candidates(
    function: Callable[..., Tensor], x: Tensor, sigmas: Tensor, seed: int | None
) -> Iterator[Make]:
    if (make := getattr(function, "make_noise_sampler", None)) is not None:
        yield functools.partial(make, x, seed)
    low, high = sigmas[sigmas > 0].min(), sigmas.max()
    for names in (_globals_of(function), vars(k_diffusion)):
        default, brownian = names.get("default_noise_sampler"), names.get("BrownianTreeNoiseSampler")
        if brownian is not None:
            for cpu in (True, False):
                yield functools.partial(brownian, x, low, high, seed=seed, cpu=cpu)
        if default is not None:
            yield functools.partial(default, x, seed=seed)


def _globals_of(function: Any) -> dict[str, Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(inspect.unwrap(function), "__globals__", {})


def _global_noise_untouched(x: Tensor, seed: int | None) -> Any:
    """Without a seed, noise comes from torch's global generators, which are put back."""
    kind = x.device.type
    if kind in ("cuda", "xpu") and seed is None:
        return torch.random.fork_rng(devices=[x.device.index or 0], device_type=kind)
    return torch.random.fork_rng(devices=[])


def _never(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    raise Undraftable("it steps otherwise than in its dry run")
