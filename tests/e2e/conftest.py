# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end-to-end tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from devtools.server import Server


@pytest.fixture
def models(comfy_server: Server) -> Path:
    """The server's models folder."""
    return comfy_server.base / "models"
