# SPDX-License-Identifier: GPL-3.0-or-later
"""The quick run of `dev.py bench robustness`, held to its bars."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.server import Server
from dizzydiff.benchmarks.robustness import attack


@pytest.fixture(scope="module")
def rows(comfy_server: Server) -> dict[str, dict[str, Any]]:
    return {row["attack"]: row for row in attack(comfy_server, 40, 40, 40)}


@pytest.mark.parametrize("kind", ["valid", "invalid", "interrupted"])
def test_every_prompt_ends_as_it_should(kind: str, rows: dict[str, dict[str, Any]]) -> None:
    assert rows[kind]["failures"] == {}
    assert rows[kind]["as it should"] == rows[kind]["prompts"] == 40
    assert rows[kind]["interrupted"] > 10 or kind != "interrupted"


def test_the_server_lives_and_holds_no_more_memory_than_before(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["memory"]["alive"]
    assert rows["memory"]["growth"] < 0.05, rows["memory"]
