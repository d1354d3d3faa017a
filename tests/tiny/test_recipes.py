# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("arguments", [[], ["flow"]])
def test_the_recipe_of_each_model_starts(arguments: list[str], root: Path) -> None:
    program = [sys.executable, "-P", str(root / "tiny" / "__main__.py"), *arguments, "--help"]
    told = subprocess.run(program, capture_output=True, text=True, encoding="utf-8", check=False)
    assert told.returncode == 0, told.stderr
    assert "--work" in told.stdout
