# SPDX-License-Identifier: GPL-3.0-or-later
"""The speed of the whole on one GPU, with random weights of real sizes. Without a GPU, use --quick: toy sizes
on the CPU.

Parts, each cut off after 8 minutes; the environment variable DIZZYDIFF_GPU_PARTS names those to run
("batches, kernels").
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..devtools.inprocess import enter_comfyui
from ..devtools.process import environment

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 480
WANTED = "DIZZYDIFF_GPU_PARTS"
Part = Callable[[torch.device, bool], Iterator[dict[str, Any]]]


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; each names its part and the device it was measured on."""
    on_cpu = not torch.cuda.is_available()
    enter_comfyui(ROOT, cpu=on_cpu)
    device = torch.device("cpu" if on_cpu else "cuda:0")
    name = "CPU" if on_cpu else torch.cuda.get_device_name(device)
    if on_cpu and not quick:
        raise SystemExit(
            "This machine has no CUDA device. With --quick the script runs at toy sizes on the CPU, to show "
            "that it works."
        )
    return list(measured(parts(), device, name, quick, time.perf_counter))


def measured(
    parts: Mapping[str, Part], device: torch.device, name: str, quick: bool, clock: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """The rows of each part until its time is over. A part that fails costs its own rows: what it had, and a
    row that says why.
    """
    for part, measure in parts.items():
        started, common = clock(), {"part": part, "device": name, **({"toy": True} if quick else {})}
        try:
            for row in measure(device, quick):
                print({**common, **row}, file=sys.stderr, flush=True)
                yield {**common, **row}
                if clock() - started > LIMIT_S:
                    yield {**common, "cut_off_after_s": LIMIT_S}
                    break
        except Exception as error:
            traceback.print_exc()
            yield {**common, "failed": f"{type(error).__name__}: {error}"}


def parts() -> dict[str, Part]:
    """Those that are wanted, by name. Exits where a name is none of them."""
    from . import _gpu_calls, _gpu_drafts, _gpu_elsewhere, _gpu_kernels

    every: dict[str, Part] = {
        "passes": _gpu_drafts.passes,
        "traces": _gpu_drafts.traces,
        "elsewhere": _gpu_elsewhere.elsewhere,
        "kernels": _gpu_kernels.kernels,
        "student step": _gpu_calls.student_step,
        "launches": _gpu_calls.launches,
        "batches": _gpu_calls.batches,
        "threads": _gpu_calls.threads,
        "drafted": _gpu_drafts.drafted,
        "import": import_time,
    }
    wanted = [name.strip() for name in os.environ.get(WANTED, "").split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in every]:
        raise SystemExit(f"{WANTED} names {', '.join(unknown)}; expected some of: {', '.join(every)}.")
    return {name: every[name] for name in wanted} if wanted else every


def import_time(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """What the pack adds to the start of a ComfyUI that has imported everything of its own."""
    script = f"""
import asyncio, pathlib, runpy, sys, time
root = pathlib.Path({str(ROOT)!r})
load_package = runpy.run_path(str(root / "devtools" / "package.py"))["load_package"]
load_package("devtools", root / "devtools")
from devtools.inprocess import enter_comfyui
enter_comfyui(root)
import comfy.multigpu, comfy.sd, comfy_extras.nodes_custom_sampler, comfy_extras.nodes_model_advanced, nodes
from comfy_api.latest import io
started, used = time.perf_counter(), time.process_time()
load_package("dizzydiff", root)
extension = asyncio.run(sys.modules["dizzydiff"].comfy_entrypoint())
asyncio.run(extension.get_node_list())
print(time.perf_counter() - started, time.process_time() - used)
"""
    runs = [
        subprocess.run(
            [sys.executable, "-P", "-c", script],
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout
        for _ in range(1 if quick else 5)
    ]
    wall, cpu = (min(float(out.split()[which]) for out in runs) for which in (-2, -1))
    yield {"pack_import_s": wall, "pack_import_cpu_s": cpu}


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All columns of all parts, empty where a row has none."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
