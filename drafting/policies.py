# SPDX-License-Identifier: GPL-3.0-or-later
"""How wide a window is, and which drafts are near enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["verified", "aggressive", "conservative"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Policy:
    """Windows of ``k`` states.

    aggressive: one round of one state, then rounds of k: 1 + ceil((N - 1) / k) rounds for N model calls.
    conservative: rounds of one and of k in turn: 2 floor(N / (k + 1)) + {0, 1, 2} for a remainder of {0, 1,
    more}.
    verified: aggressive, but a draft not within ``tolerance`` of where the sampler arrives is dropped with
    all after it.
    """

    mode: Mode = "verified"
    k: int = 2
    tolerance: float = math.inf

    def width(self, rounds: int, left: int) -> int:
        """States of the next window, after so many rounds and with so many model calls left.

        The first is one state wide: nothing is known yet to draft from.
        """
        alone = rounds % 2 == 0 if self.mode == "conservative" else rounds == 0
        return 1 if alone else min(self.k, left)

    @property
    def verifies(self) -> bool:
        """Whether drafts may be dropped."""
        return self.mode == "verified"

    def accepts(self, deviation: float) -> bool:
        return not self.verifies or deviation < self.tolerance
