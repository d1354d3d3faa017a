# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one benchmark, prints its rows and writes them as JSON with the machine, and its tables and picture if
it has them.
"""

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


def write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def main() -> int:
    names = sorted(file.stem for file in (ROOT / "benchmarks").glob("[!_]*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()

    runpy.run_path(str(ROOT / "devtools" / "package.py"))["load_package"]("dizzydiff", ROOT)
    benchmark = importlib.import_module(f"dizzydiff.benchmarks.{options.name}")
    rows = benchmark.run(options.quick)
    for row in rows:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in row.items()
            )
        )
    report = {"benchmark": options.name, "quick": options.quick, "machine": machine(), "rows": rows}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write(options.json, json.dumps(report, indent=1) + "\n")
    if hasattr(benchmark, "csv_table"):
        write(options.json.with_suffix(".csv"), benchmark.csv_table(rows))
    if hasattr(benchmark, "table"):
        write(options.json.with_suffix(".md"), benchmark.table(rows))
    if hasattr(benchmark, "picture"):
        benchmark.picture(rows).save(options.json.with_suffix(".png"))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
