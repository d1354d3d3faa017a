# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipes as a program: ``python3 dev.py tiny`` and ``python3 dev.py tiny flow`` run them in the clone's
environment.
"""

import importlib
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Import the pack as ComfyUI does, ComfyUI with it, and run the recipe that is asked for."""
    runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]("dizzydiff", ROOT)
    importlib.import_module("dizzydiff.devtools.inprocess").enter_comfyui(ROOT)
    arguments = sys.argv[1:]
    flow = arguments[:1] == ["flow"]
    recipe = importlib.import_module(f"dizzydiff.tiny.{'flow.' if flow else ''}recipe")
    recipe.main(arguments[flow:])


if __name__ == "__main__":
    main()
