# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 dev.py tiny``: make the embedded pipeline from nothing, as the package ``dizzydiff`` would import it."""

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Load the pack as ComfyUI does (its root never on sys.path) and run the recipe."""
    spec = importlib.util.spec_from_file_location("dizzydiff", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    sys.modules["dizzydiff"] = importlib.util.module_from_spec(spec)
    importlib.import_module("dizzydiff.tiny.recipe").main(sys.argv[1:])


if __name__ == "__main__":
    main()
