# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks with a second time: u(x, t, r) is the mean velocity from noise level t down to r, so that one
Euler step from t to r is exact whatever its length (flow maps, MeanFlow: Geng et al. 2025, arXiv 2505.13447).

Times are noise levels of a flow here, from 1 (noise) to 0 (picture).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..common.messages import warn
from .errors import ConfigMismatch, UnsupportedModel
from .files import Config, number_in

KEY = "dizzydiff_second_time"
SAME_LEVEL = 1e-5
"""Relative: noise levels nearer than that are one."""
DISABLED = "disable_time_r"
"""Of core's HunyuanVideo: its own second time, that of the first row for all rows, is left out."""

Join = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(network, t [B], r [B], embedding of t [B, F]) -> embedding of both [B, F]."""


def anyflow(
    network: Any, t: Tensor, r: Tensor, embedded: Tensor, *, gate: float = 0.25, interval: bool = False
) -> Tensor:
    """(1 - gate) e(1000 t) + gate e'(1000 r), or e'(1000 (t - r)) with ``interval`` (Gu et al. 2026, arXiv
    2605.13724; in diffusers AnyFlowDualTimestepTextImageEmbedding).
    """
    second = 1000 * t - 1000 * r if interval else 1000 * r
    waves = waves_of(second, network.freq_dim)
    return (1 - gate) * embedded + gate * network.delta_embedding(waves.to(embedded.dtype))


def twinflow_qwen(network: Any, t: Tensor, r: Tensor, embedded: Tensor) -> Tensor:
    """e(t) + (t - r) e'(r) (Cheng et al. 2025, arXiv 2512.05150, and its authors' code)."""
    return embedded + _column(t - r, embedded) * network.time_text_embed_2(r, embedded)


def twinflow_z_image(network: Any, t: Tensor, r: Tensor, embedded: Tensor) -> Tensor:
    """e(s) + |s - q| e'(q - s) in Z-Image's times s = 1 - t and q = sign(r) (1 - r).

    As the authors' code has it, r = 0 becomes q = 0 by its sign, and not 1.
    """
    s, q = 1 - t, r.sign() * (1 - r.abs())
    second = network.t_embedder_2((q - s) * network.time_scale, dtype=embedded.dtype)
    return embedded + _column((s - q).abs(), embedded) * second


def meanflow(network: Any, t: Tensor, r: Tensor, embedded: Tensor) -> Tensor:
    """e(t) + e'(r), or their mean, as core's HunyuanVideo has it for the first row."""
    both = embedded + network.time_r_in(waves_of(1000 * r, 256).to(embedded.dtype))
    return both if network.params.meanflow_sum else both / 2


def waves_of(times: Tensor, width: int) -> Tensor:
    """[B] -> [B, width] in fp32: [cos(a f), sin(a f)] of times a, f_j = 10000^(-2 j / width), as transformers
    embed times.
    """
    half = width // 2
    f = torch.exp(torch.arange(half, dtype=torch.float32, device=times.device) * (-math.log(10000.0) / half))
    angles = times.float()[:, None] * f
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _column(weight: Tensor, like: Tensor) -> Tensor:
    return weight[:, None].to(like.dtype)


@dataclass(frozen=True)
class SecondTime:
    """A family of such networks.

    mark: a pattern that the name of one of its tensors matches, the prefix apart. first, second: core's
    embedder of t and its twin of r, as submodules of the network; ``made`` where core's class has no twin.
    to_zero: r is always 0, as its sampler asks; else the level that follows t. shift: of its noise levels,
    where core's is another.
    """

    name: str
    mark: str
    first: str
    second: str
    join: Join
    made: bool = True
    to_zero: bool = False
    shift: float | None = None

    def prefix_of(self, key: str) -> str | None:
        """What stands before the mark in the name of a tensor that it is in, None in that of another."""
        found = re.search(rf"(^|\.){self.mark}", key)
        return None if found is None else key[: found.end(1)]

    def with_settings(self, settings: Config, name: str) -> SecondTime:
        """As the config of a folder, or the metadata of a file, says. Raises ConfigMismatch."""
        if self.join is not anyflow:
            return self
        kind = settings.get("deltatime_type", "r")
        if kind not in ("r", "t-r"):
            raise ConfigMismatch(
                f'{name}: deltatime_type is {kind!r}; expected "r" or "t-r". Correct it in the config.'
            )
        gate = number_in(settings, "gate_value", 0.25, (0.0, 1.0), name)
        return replace(self, join=functools.partial(anyflow, gate=gate, interval=kind == "t-r"))


FAMILIES = (
    SecondTime(
        "AnyFlow",
        r"(condition_embedder\.delta_embedder|delta_embedding)\.",
        "time_embedding",
        "delta_embedding",
        anyflow,
        shift=5.0,
    ),
    SecondTime(
        "TwinFlow (Qwen-Image)",
        r"time_text_embed_2\.",
        "time_text_embed",
        "time_text_embed_2",
        twinflow_qwen,
        to_zero=True,
    ),
    SecondTime(
        "TwinFlow (Z-Image)", r"t_embedder_2\.", "t_embedder", "t_embedder_2", twinflow_z_image, to_zero=True
    ),
    SecondTime("MeanFlow", r"time_r_in\.", "time_in", "time_r_in", meanflow, made=False),
)


def second_time(keys: Iterable[str]) -> SecondTime | None:
    """The family of a network with these tensors, or None for one with a single time."""
    names = list(keys)
    return next((each for each in FAMILIES if any(each.prefix_of(name) is not None for name in names)), None)


def next_level(t: Tensor, schedule: Tensor) -> Tensor:
    """[B] and [N + 1] -> [B]: the level of the schedule that follows each t, the highest one below it; 0
    below all of them. On a schedule that rises r is t itself, which makes u the velocity at t.
    """
    levels = schedule.to(t)
    below = levels < t[:, None] * (1 - SAME_LEVEL)
    falling = torch.where(below, levels, 0).amax(1)
    return torch.where(levels[0] < levels[-1], t, falling)


@functools.lru_cache(maxsize=16)
def tell_velocity(name: str) -> None:
    """Once for each MODEL: what is done where nothing says how far a step goes."""
    warn(
        f"{name} is asked for a prediction outside of a sampler's noise levels: its second time is taken to "
        "be the first, which gives the velocity at that level."
    )


class Together:
    """An APPLY_MODEL wrapper: the second time of every row joins the embedding of its first."""

    def __init__(self, family: SecondTime, name: str) -> None:
        self.family, self.name = family, name

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any,
        context: Any,
        control: Any,
        options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        if not self.family.made:
            if kwargs.get(DISABLED):
                return executor(x, t, c_concat, context, control, options, **kwargs)
            kwargs[DISABLED] = True
        network = executor.class_obj.diffusion_model
        hook = functools.partial(self._joined, network, t.float(), self._second(t.float(), options))
        handle = network.get_submodule(self.family.first).register_forward_hook(hook)
        try:
            return executor(x, t, c_concat, context, control, options, **kwargs)
        finally:
            handle.remove()

    def _second(self, t: Tensor, options: dict[str, Any]) -> Tensor:
        if self.family.to_zero:
            return torch.zeros_like(t)
        schedule = options.get("sample_sigmas")
        if schedule is not None and len(schedule) > 1:
            return next_level(t, schedule)
        tell_velocity(self.name)
        return t

    def _joined(
        self, network: Any, t: Tensor, r: Tensor, _module: nn.Module, _inputs: Any, embedded: Tensor
    ) -> Tensor:
        if len(embedded) != len(t):
            raise UnsupportedModel(
                f"{self.name} embeds {len(embedded)} times for {len(t)} rows, as with reference pictures or "
                f"times of single frames; {self.family.name} has a second time for each row only. Sample it "
                "without them."
            )
        return self.family.join(network, t, r, embedded)
