# SPDX-License-Identifier: GPL-3.0-or-later
"""Importing a folder of the clone as a package while the clone's root stays off sys.path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def load_package(name: str, folder: Path) -> None:
    """Import ``folder`` as the package ``name``, the way ComfyUI loads a pack; its modules can then be
    imported by name.
    """
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
