# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one benchmark, prints its rows and writes them as JSON beside what they were measured on."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    return {
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> int:
    names = sorted(file.stem for file in (ROOT / "benchmarks").glob("[!_]*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()

    runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]("dizzydiff", ROOT)
    rows = importlib.import_module(f"dizzydiff.benchmarks.{options.name}").run(options.quick)
    for row in rows:
        print("  ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()))
    unfinished = options.json.with_name(options.json.name + ".part")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    report = {"benchmark": options.name, "quick": options.quick, "machine": machine(), "rows": rows}
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
