# SPDX-License-Identifier: GPL-3.0-or-later
"""One state after the other, on the model's own device."""

from __future__ import annotations

from ..errors import Undraftable
from .base import Backend, Request
from .batch import Batch
from .graph import foreign, same_conditions


class OneDevice(Backend):
    """A state a call, in the sampler's order. What is gained are calls that are skipped, since they can be
    interpolated between others.

    What is skipped is not seen: a patch that acts at a single step would be missed. So only core's own is
    sampled so.
    """

    @classmethod
    def refusal(cls, request: Request) -> Undraftable | None:
        if request.wish.get("batch", False):
            return Batch.refusal(request)
        if request.states_a_round == 1:
            return Undraftable("one prediction per round leaves nothing to draft")
        if (who := foreign(request.model, request.options)) is not None:
            return Undraftable(f"there is one device, and {who} may act at single steps, so none is skipped")
        return None

    @classmethod
    def make(cls, request: Request) -> OneDevice:
        return cls(request, 1)

    def may_skip(self, before: float, sigma: float, behind: float) -> bool:
        return same_conditions(self.request.model, (before, sigma, behind))

    def __str__(self) -> str:
        return "one device"
