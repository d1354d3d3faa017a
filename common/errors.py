# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of all mistakes that are the user's to mend."""

from __future__ import annotations

from typing import Any


class UserError(ValueError):
    """What was given, what was expected, what to do. Each kind of mistake is a class of its own.

    ComfyUI shows the type at the node by its full name, which for a pack begins with a path into
    custom_nodes. Errors are named after the pack instead: ``dizzydiff.BadDevices``.
    """

    __module__ = "dizzydiff"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__module__ = UserError.__module__
