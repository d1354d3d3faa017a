# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the workflows of all presets, their copies in API format, their thumbnails, and the table of the
docs. Runs in the environment (comfy-cli), on a running ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import runpy
import urllib.request
from pathlib import Path
from typing import Any

from comfy_cli.workflow_to_api import convert_ui_to_api

DEVTOOLS = Path(__file__).parents[1]
runpy.run_path(str(DEVTOOLS / "package.py"))["load_package"]("devtools", DEVTOOLS)
from devtools.pictures import thumbnail  # noqa: E402
from devtools.templates.families import workflow  # noqa: E402
from devtools.templates.page import with_table  # noqa: E402
from devtools.templates.presets import PRESETS  # noqa: E402


def write(file: Path, graph: dict[str, Any]) -> None:
    file.write_text(json.dumps(graph, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    with urllib.request.urlopen(f"{options.address}/object_info", timeout=60) as answer:
        info = json.load(answer)
    folder = options.root / "workflows"
    for preset in PRESETS:
        graph = workflow(preset, info)
        write(folder / f"{preset.name}.json", graph)
        write(folder / "api" / f"{preset.name}.json", convert_ui_to_api(graph, info))
        thumbnail(preset.name, [], []).save(folder / f"{preset.name}.jpg", quality=90)
    page = options.root / "docs" / "models.md"
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
