# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe as a program: ``python3 dev.py tiny`` runs it in the clone's environment."""

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Import the pack as the package ``dizzydiff``, as ComfyUI does, and run its recipe."""
    spec = importlib.util.spec_from_file_location(
        "dizzydiff", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["dizzydiff"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    importlib.import_module("dizzydiff.tiny.recipe").main()


if __name__ == "__main__":
    main()
