# SPDX-License-Identifier: GPL-3.0-or-later
"""The same small picture plainly and with drafts."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from torch import Tensor

from dizzydiff.drafting.devices import spread
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings

STEPS, TOLERANCE = 12, 0.01
TWO, BATCH = "cpu, cpu:1", "batch"
Prompts = tuple[list, list]


def encoded(clip: Any, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sampled(model: Any, prompts: Prompts, sampler: Any, **given: Any) -> Tensor:
    """SamplerCustom on an 8x8 latent; given: rows, scheduler, cfg, seed."""
    latent = {"samples": torch.zeros(given.get("rows", 1), 4, 8, 8)}
    scheduler, steps = given.get("scheduler", "karras"), given.get("steps", STEPS)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    cfg, seed = given.get("cfg", 4.0), given.get("seed", 7)
    return SamplerCustom.execute(model, True, seed, cfg, *prompts, sampler, sigmas, latent).result[0][
        "samples"
    ]


def drafting(
    model: Any,
    prompts: Prompts,
    devices: str,
    inner: Any = None,
    settings: Settings | None = None,
    **given: Any,
) -> tuple[Tensor, Report | None]:
    reports: list[Report] = []
    inner = inner or comfy.samplers.sampler_object("euler")
    width = 4 if devices == BATCH else 0
    sampler = DraftRefine(inner, settings or Settings("verified", width, TOLERANCE), on_report=reports.append)
    result = sampled(spread(model, devices, 0), prompts, sampler, **given)
    return result, reports[0] if reports else None


def plain(model: Any, prompts: Prompts, inner: Any = None, **given: Any) -> Tensor:
    return sampled(model, prompts, inner or comfy.samplers.sampler_object("euler"), **given)


def distance(result: Tensor, reference: Tensor) -> float:
    return float((result - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def same(result: Tensor, reference: Tensor) -> None:
    """But for rounding: on several devices core divides cond and uncond between them."""
    torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-4)


def widest(report: Report | None) -> int:
    return 0 if report is None else max(len(states) for states in report.rounds)
