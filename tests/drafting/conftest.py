# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties hold on a busy machine too: no deadline for an example."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
