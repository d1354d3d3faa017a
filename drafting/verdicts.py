# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found out about a graph, kept so that it is asked once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from .errors import Undraftable

KEPT = 16
"""Verdicts, the last used last."""


@dataclass(frozen=True)
class Verdict:
    """Why predictions of a graph must not be drafted; "" where they may. kind: what is raised for it.

    passed: whether nothing is left to check. speeds: of devices, by name, in classes relative to the model's
    own; call_s: seconds that a call of the fastest took.
    """

    reason: str = ""
    kind: type[Undraftable] = Undraftable
    passed: bool = True
    speeds: Mapping[str, float] = field(default_factory=dict)
    call_s: float = 0.0


@dataclass
class Verdicts:
    """Of one Draft Devices node, by what was asked about: model and patches, guider, latent, backend.

    ``subject`` objects are held for as long as their verdict is, so that their identity stays their own.
    """

    _known: OrderedDict[Hashable, tuple[Verdict, object]] = field(default_factory=OrderedDict)

    def get(self, key: Hashable) -> Verdict | None:
        if key not in self._known:
            return None
        self._known.move_to_end(key)
        return self._known[key][0]

    def add(self, key: Hashable, verdict: Verdict, subject: object) -> None:
        self._known[key] = verdict, subject
        self._known.move_to_end(key)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
