# SPDX-License-Identifier: GPL-3.0-or-later
"""How long and how large a training is, under names for whoever does not want to choose numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .plan import Plan

CUSTOM = "custom"


@dataclass(frozen=True)
class Preset:
    """As in ``Plan``."""

    updates: int
    batch: int
    rank: int
    step_updates: int
    rate: float = 1e-3


PRESETS: Mapping[str, Preset] = {
    "quick look": Preset(updates=200, batch=2, rank=8, step_updates=100),
    "good": Preset(updates=2000, batch=4, rank=16, step_updates=600),
    "best": Preset(updates=8000, batch=8, rank=32, step_updates=2000),
}


def with_preset(plan: Plan, name: str) -> Plan:
    """The plan with a preset's numbers in the place of its own; as it is for ``CUSTOM``."""
    return plan if name == CUSTOM else replace(plan, **vars(PRESETS[name]))


def sentence(name: str) -> str:
    """What a preset stands for."""
    preset = PRESETS[name]
    return (
        f"{name}: {preset.updates} updates of {preset.batch} states, rank {preset.rank}, learning rate "
        f"{preset.rate:g}, {preset.step_updates} updates for each halving of the steps."
    )
