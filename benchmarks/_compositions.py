# SPDX-License-Identifier: GPL-3.0-or-later
"""What other packs put round a model: patches, conditions with other rows than the latent or with ranges that
end at a sampled noise level, guiders, and samplers that are not what they seem.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devtools.package import load_package
from ._sampling import cfg_guider, levels
from .networks.subject import Subject

CFG = 4.0


def unchanged(value: Any) -> Any:
    return value


def default_guider(subject: Subject, model: Any) -> Any:
    return cfg_guider(model, subject.positive, subject.negative, CFG)


def euler(_subject: Subject, _model: Any) -> Any:
    return named_sampler("euler")


def named_sampler(name: str) -> Any:
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


@dataclass(frozen=True)
class Composition:
    """A graph: what is put on the MODEL before Draft Devices, the GUIDER, the SAMPLER that is drafted, what
    is put round the drafted SAMPLER, and what is sampled.
    """

    name: str
    patch: Callable[[Subject, Any], Any] = lambda subject, model: model
    guider: Callable[[Subject, Any], Any] = default_guider
    sampler: Callable[[Subject, Any], Any] = euler
    around: Callable[[Any], Any] = unchanged
    sigmas: Callable[[Tensor], Tensor] = unchanged
    rows: int = 2
    seed: int = 7


def prompts_of_three_rows(subject: Subject, model: Any) -> Any:
    """A prompt with three rows; core takes the first for fewer latents, and repeats them for more."""
    rows = torch.cat([subject.network.prompt(number)[0][0] for number in (0, 2, 3)])
    return cfg_guider(model, [[rows, subject.positive[0][1]]], subject.negative, CFG)


def masks_of_three_rows(subject: Subject, model: Any) -> Any:
    import node_helpers

    masks = torch.zeros(3, 64, 64)
    masks[0, :32], masks[1, 32:], masks[2, :, 32:] = 1, 1, 1
    masked = node_helpers.conditioning_set_values(subject.positive, {"mask": masks, "mask_strength": 1.0})
    return cfg_guider(model, masked + subject.network.prompt(2), subject.negative, CFG)


def changes_at(share: float, subject: Subject, model: Any) -> Any:
    """One prompt until a share of the run, another from there on."""
    import node_helpers

    first = node_helpers.conditioning_set_values(
        subject.positive, {"start_percent": 0.0, "end_percent": share}
    )
    second = node_helpers.conditioning_set_values(
        subject.network.prompt(2), {"start_percent": share, "end_percent": 1.0}
    )
    return cfg_guider(model, first + second, subject.negative, CFG)


def changes_at_sampled_level(index: int, subject: Subject, model: Any) -> Any:
    """One prompt until a noise level that is sampled, another from there on, decided by its last bit."""
    sampling = model.get_model_object("model_sampling")
    boundary = float(levels(model, "euler", 8)[index])
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        low, high = (share, high) if float(sampling.percent_to_sigma(share)) > boundary else (low, share)
    return changes_at(high, subject, model)


def rises_midway(sigmas: Tensor) -> Tensor:
    """Noise levels that go up once, as restarts do."""
    return torch.cat([sigmas[:5], sigmas[3:]])


def sampler_named(name: str) -> Callable[[Subject, Any], Any]:
    return lambda subject, model: named_sampler(name)


def another_pack(module: str) -> Any:
    """A module of ``another_pack``, loaded as ComfyUI loads a pack: under a name that is not ours."""
    if "another_pack" not in sys.modules:
        load_package("another_pack", Path(__file__).with_name("another_pack"))
    return importlib.import_module(f"another_pack.{module}")


def put_on(patch: Callable[[Any], Any]) -> Callable[[Subject, Any], Any]:
    return lambda subject, model: patch(model)


def falling_guider(subject: Subject, model: Any) -> Any:
    guider = another_pack("guiders").Falling(model)
    guider.set_conds(subject.positive, subject.negative)
    return guider


def compositions() -> tuple[Composition, ...]:
    """One of each kind."""
    patches, samplers = another_pack("patches"), another_pack("samplers")
    return (
        Composition("nothing"),
        Composition("reads the first sigma until .35", put_on(patches.reads_first_sigma(0.0, 0.35))),
        Composition("reads the first sigma from .5 on", put_on(patches.reads_first_sigma(0.5, 1.0))),
        Composition("asks for one sigma", put_on(patches.asks_one_sigma)),
        Composition("looks up its step", put_on(patches.looks_up_step)),
        Composition("normalises over the batch", put_on(patches.normalises_over_batch)),
        Composition("centres the rows", put_on(patches.centres_rows)),
        Composition("caches every second call", put_on(patches.every_second_call)),
        Composition("caches while little changes", put_on(patches.accumulates_change)),
        Composition("guides with momentum", put_on(patches.momentum)),
        Composition("counts its calls", put_on(patches.counts_calls)),
        Composition("draws from torch's generator", put_on(patches.draws_noise)),
        Composition("sets the guider's CFG", put_on(patches.sets_guider)),
        Composition("three prompts on two latents", guider=prompts_of_three_rows),
        Composition("three prompts on four latents", guider=prompts_of_three_rows, rows=4),
        Composition("three masks on two latents", guider=masks_of_three_rows),
        Composition("changes prompt at .3", guider=partial(changes_at, 0.3)),
        Composition("changes prompt at a sampled sigma", guider=partial(changes_at_sampled_level, 3)),
        Composition("guider of another pack", guider=falling_guider),
        Composition("sampler inside a sampler", around=samplers.wrapped),
        Composition("sampler that hides its last step", sampler=put_on(lambda _: samplers.silent_sampler())),
        Composition("sampler with noise of its own", sampler=put_on(lambda _: samplers.own_noise())),
        Composition("sampler that grows its state", sampler=put_on(lambda _: samplers.grows())),
        Composition("sigmas that rise midway", sigmas=rises_midway),
        Composition("dpmpp_2m_sde", sampler=sampler_named("dpmpp_2m_sde")),
        Composition(
            "largest seed, euler_ancestral", sampler=sampler_named("euler_ancestral"), seed=2**64 - 2
        ),
        Composition("largest seed, dpmpp_sde", sampler=sampler_named("dpmpp_sde"), seed=2**64 - 2),
    )
