# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe as a program: ``python3 dev.py tiny`` runs it in the clone's environment."""

import importlib
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]("dizzydiff", ROOT)
    importlib.import_module("dizzydiff.tiny.recipe").main()


if __name__ == "__main__":
    main()
