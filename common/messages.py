# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to say to the user: once in the log, and wherever else somebody listens."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("dizzydiff")

Say = Callable[[str], None]
"""Takes one sentence."""


def warn(sentence: str) -> None:
    """In the log, as a warning."""
    log.warning("DizzyDiff: %s", sentence)


def inform(sentence: str) -> None:
    """In the log."""
    log.info("DizzyDiff: %s", sentence)


def both(one: Say, other: Say | None) -> Say:
    """What says a sentence in two places."""
    if other is None:
        return one

    def say(sentence: str) -> None:
        one(sentence)
        other(sentence)

    return say
