# SPDX-License-Identifier: GPL-3.0-or-later
"""How a student of Distill Guidance wants to be sampled, read from its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .adapter import Adapter, Manifest

SAMPLER, SCHEDULER = "euler", "simple"
"""With which stage two trains."""
SIGMAS_SAID = 4
"""In a sentence."""


@dataclass(frozen=True)
class Recipe:
    """steps: that the student was made for, 0 for any. sigmas: [steps + 1] it was trained on, or None for
    those of core's ``simple``.
    """

    steps: int = 0
    sigmas: tuple[float, ...] | None = None

    def sentence(self) -> str:
        if not self.steps:
            return "made for any sampler and number of steps, at CFG 1"
        levels = SCHEDULER if self.sigmas is None else f"the sigmas {_short(self.sigmas)}"
        return f"made for {self.steps} step{'s' * (self.steps > 1)}: {SAMPLER}, {levels}, CFG 1"

    def metadata(self) -> dict[str, str]:
        """For files that others load: core's names of the inputs of its samplers."""
        if not self.steps:
            return {"cfg": "1"}
        levels = (
            {"scheduler": SCHEDULER}
            if self.sigmas is None
            else {"sigmas": ", ".join(f"{sigma:.8g}" for sigma in self.sigmas)}
        )
        return {"steps": str(self.steps), "sampler_name": SAMPLER, **levels, "cfg": "1"}


def recipe_of(settings: Mapping[str, Any]) -> Recipe | None:
    """settings: an adapter's metadata. None: they do not say, or not in a way that is known."""
    plan = settings.get("plan")
    if not isinstance(plan, Mapping):
        return None
    steps = plan.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        return None
    borders, first_steps = plan.get("borders"), plan.get("first_steps")
    if not steps or borders is None:
        return Recipe(steps)
    if not _are_levels(borders) or first_steps != len(borders) - 1 or first_steps % steps:
        return None
    return Recipe(steps, tuple(map(float, borders[:: first_steps // steps])))


def description(found: Adapter | Manifest) -> str:
    """One sentence about a student: of whom, for which scales and steps, and whether its training has ended.
    Of several, the first speaks for all.
    """
    adapter = found.adapter(0) if isinstance(found, Manifest) else found
    recipe, scales = recipe_of(adapter.settings), adapter.guidance.scale_range
    parts = [
        f"{f'{len(found.files)} students' if isinstance(found, Manifest) else 'A student'} of "
        f"{adapter.teacher_name}",
        *([] if scales is None else ["for guidance {:g} to {:g}".format(*scales)]),
        *([] if recipe is None else [recipe.sentence()]),
        *(["its training has not ended"] if adapter.settings.get("finished") is False else []),
    ]
    return ", ".join(parts) + "."


def _short(sigmas: tuple[float, ...]) -> str:
    said = [f"{sigma:.4g}" for sigma in sigmas]
    return ", ".join(said if len(said) <= SIGMAS_SAID + 1 else [*said[:SIGMAS_SAID], "...", said[-1]])


def _are_levels(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(each, int | float) for each in value)
