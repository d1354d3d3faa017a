# SPDX-License-Identifier: GPL-3.0-or-later
"""What grids are compared on, and mixtures of several kinds, whose every image is known exactly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..stability.profile import Effort, Profile, level_sigmas, measure
from ..stability.watched import Run
from ._mixture import IsotropicMixture, flow, variance_exploding

CALIBRATION_SEED, SEED = 7, 100


@dataclass(frozen=True)
class Case:
    """A model that can be sampled. ends(grid, solver) -> [S, ...]; judge(ends, reference) -> more columns."""

    name: str
    sampling: Any
    profile: Callable[[Effort], Profile]
    ends: Callable[[Tensor, str], Tensor]
    judge: Callable[[Tensor, Tensor], dict[str, float]]
    bound: Callable[[Tensor], Tensor] | None = None
    watched: Callable[[Tensor, str, int], Run] | None = None
    """What is watched of so many other pictures, made on a grid by a solver."""


def mixture_cases(seeds: int) -> Iterable[Case]:
    """Three kinds, and of each kind another of other size, weights and width; one of them as a flow with
    shift 3.
    """
    g = torch.Generator().manual_seed(0)
    yield mixture_case("modes", modes(g, 20, 64), 0.3, seeds)
    yield mixture_case("curve", curve(g, 300, 256, 8), 0.05, seeds)
    yield mixture_case("tree", tree(g, 6, 128), 0.1, seeds)
    yield mixture_case(
        "modes, held out", modes(g, 50, 96) * torch.linspace(0.3, 1.5, 96, dtype=torch.float64), 0.2, seeds
    )
    yield mixture_case("curve, held out", curve(g, 240, 96, 5), 0.1, seeds)
    yield mixture_case("tree, held out", tree(g, 4, 160), 0.15, seeds)
    yield mixture_case("tree, held out, flow", tree(g, 5, 96), 0.1, seeds, of_flow=True)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def modes(g: torch.Generator, count: int, d: int) -> Tensor:
    """Far apart: [count, d]."""
    return normal(g, count, d)


def curve(g: torch.Generator, count: int, d: int, harmonics: int) -> Tensor:
    """Along a closed curve, nearly a continuum: [count, d]."""
    t = torch.linspace(0, 2 * math.pi, count + 1, dtype=torch.float64)[:-1, None]
    f = torch.arange(1, harmonics + 1, dtype=torch.float64)
    waves = torch.cat([torch.cos(t * f) / f.sqrt(), torch.sin(t * f) / f.sqrt()], dim=1)
    return waves @ normal(g, 2 * harmonics, d) / (2 * harmonics) ** 0.5 * 1.2


def tree(g: torch.Generator, branches: int, d: int) -> Tensor:
    """Three levels of ever finer choices: [branches^3, d]."""
    b = branches
    return (normal(g, b, 1, 1, d) + 0.5 * normal(g, b, b, 1, d) + 0.25 * normal(g, b, b, b, d)).reshape(-1, d)


def mixture_case(name: str, means: Tensor, std: float, seeds: int, of_flow: bool = False) -> Case:
    from comfy import model_sampling as core

    kinds: tuple[type, type] = (
        (core.ModelSamplingDiscreteFlow, core.CONST) if of_flow else (core.ModelSamplingDiscrete, core.EPS)
    )
    sampling: Any = type("Sampling", kinds, {})()
    if of_flow:
        sampling.set_parameters(shift=3.0)
    weights = torch.full((len(means),), 1 / len(means), dtype=torch.float64)
    mixture = IsotropicMixture(weights, means, std, flow() if of_flow else variance_exploding())
    sigma_max, sigma_min, d = float(sampling.sigma_max), float(sampling.sigma_min), means.shape[1]

    def noise(n: int, seed: int) -> Tensor:
        return sigma_max * normal(torch.Generator().manual_seed(seed), n, d)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return mixture.denoised(x, torch.tensor(sigma, dtype=torch.float64))

    def profile(effort: Effort) -> Profile:
        levels = level_sigmas(sigma_max, sigma_min, effort.levels, of_flow)
        return measure(
            denoise,
            noise(effort.probes, CALIBRATION_SEED),
            levels,
            effort.directions,
            of_flow,
            lambda made, of: None,
        )

    def ends(grid: Tensor, solver: str) -> Tensor:
        return core_sample(
            lambda x, sigma, **_: denoise(x, float(sigma[0])), noise(seeds, SEED), grid, solver, {}
        )

    def judge(ends: Tensor, reference: Tensor) -> dict[str, float]:
        mine, theirs = (torch.cdist(x, means).argmin(1) for x in (ends, reference))
        return {"wrong_mode_share": float((mine != theirs).double().mean())}

    return Case(name, sampling, functools.cache(profile), ends, judge, mixture.bound)


def core_sample(
    model: Callable[..., Tensor], x: Tensor, grid: Tensor, solver: str, extra_args: dict[str, Any]
) -> Tensor:
    """ComfyUI's own sampler."""
    from comfy.samplers import sampler_object

    sampler = sampler_object(solver)
    return sampler.sampler_function(
        model, x, grid.to(x), extra_args=extra_args, disable=True, **sampler.extra_options
    )
