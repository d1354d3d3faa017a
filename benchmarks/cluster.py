# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft Cluster on this machine: what Ray adds to a round, what a second process gains, and killed workers.

Needs Ray (requirements-dev.txt). Everything runs in a real ComfyUI, with workers on its CPU.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from ..devtools import comfyui, server

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "tests" / "e2e" / "cluster_faults"
STEPS, TOLERANCE, SIDE = 50, 0.01, 384
ROUNDING = 1.05
"""How much further than an undisturbed picture, or the tolerance, one may be off that lost a worker."""
Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    rounds, pictures, kills = (20, 1, 2) if quick else (100, 3, 20)
    rows = [round_trip(rounds, shape) for shape in ((1, 4, 128, 128), (1, 16, 21, 90, 160))]
    with comfy() as running:
        return [*rows, speed(running, pictures), killed(running, kills)]


def round_trip(rounds: int, shape: tuple[int, ...]) -> Row:
    """Milliseconds for a state to a worker that answers at once with a prediction, and back: all that Ray
    and the packing add to a round.
    """
    from ..drafting.cluster.connection import Head, connect
    from ..drafting.cluster.wire import packed, unpacked

    head = Head(1, lambda: None)
    ray = connect("local", head)

    class Echo:
        def evaluate(self, sent: Any) -> Any:
            return sent

    actor, x = ray.remote(Echo).remote(), torch.randn(shape)
    times = []
    for _ in range(rounds + 5):
        started = time.perf_counter()
        back = unpacked(ray.get(actor.evaluate.remote(packed(x))))
        times.append(1000 * (time.perf_counter() - started))
        assert torch.equal(back, x)
    times = sorted(times[5:])
    size = "x".join(map(str, shape))
    return {
        "measured": f"round trip of a latent {size}",
        "median ms": statistics.median(times),
        "least ms": times[0],
        "of ten the ninth ms": times[9 * len(times) // 10],
    }


@contextlib.contextmanager
def comfy() -> Iterator[server.Server]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = comfyui.make_base(ROOT, folder / "base")
        (base / "custom_nodes" / FAULTS.name).symlink_to(FAULTS, target_is_directory=True)
        tree = comfyui.locate(ROOT).path
        with server.running(
            Path(sys.executable), tree, base, folder / "output", folder / "comfyui.log"
        ) as running:
            yield running


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(side: int, armed: Path, main: int, **sampling: Any) -> dict[str, Any]:
    """A picture of the embedded teacher by one worker beside ComfyUI's own device."""
    told = {"seed": 1, "steps": STEPS, "cfg": 2.0, "sampler_name": "euler", "scheduler": "karras"}
    told |= {"denoise": 1.0, "mode": "verified", "predictions_per_round": 0, "tolerance": TOLERANCE}
    return {
        "1": node("DizzyDiffLoadPipeline", pipeline="tiny/teacher"),
        "2": node("FaultInWorkers", model=["1", 0], fault="kill", armed=str(armed), main=main),
        "3": node("DizzyDiffCluster", model=["2", 0], address="local", workers=1, devices="cpu", width=0),
        "4": node("CLIPTextEncode", clip=["1", 1], text="a large red circle on white"),
        "5": node("CLIPTextEncode", clip=["1", 1], text=""),
        "6": node("EmptyLatentImage", width=side, height=side, batch_size=1),
        "7": node(
            "DizzyDiffDraftRefineKSampler", model=["3", 0], positive=["4", 0], negative=["5", 0],
            latent_image=["6", 0], **{**told, **sampling},
        ),
        "8": node("SaveLatent", samples=["7", 0], filename_prefix="cluster"),
    }  # fmt: skip


def drawn(running: server.Server, prompt: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], str, float]:
    """The latent, the sampler's numbers, what it said, and the seconds of the whole prompt."""
    started = time.perf_counter()
    entry = running.run(prompt, timeout=600)
    seconds = time.perf_counter() - started
    if entry["status"]["status_str"] != "success":
        raise RuntimeError(str(entry["status"]))
    (file,) = entry["outputs"]["8"]["latents"]
    latent = load_file(running.output / file["subfolder"] / file["filename"])["latent_tensor"]
    said = entry["outputs"]["7"]
    return latent, (said["draft_refine"] or [{}])[0], " ".join(said["text"]), seconds


def off(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def speed(running: server.Server, pictures: int) -> Row:
    """Two processes against one, in turn, each picture with a seed of its own."""
    armed, main = running.output / "never", running.process.pid
    alone, together, largest, rounds = [], [], 0.0, []
    for seed in range(pictures + 1):
        one, _, _, seconds = drawn(running, graph(SIDE, armed, main, seed=seed, width=1))
        two, numbers, _, _ = drawn(running, graph(SIDE, armed, main, seed=seed))
        if seed:  # the first loads the model there
            alone.append(seconds)
            together.append(numbers["seconds"])
            rounds.append(numbers["rounds"])
            largest = max(largest, off(two, one))
    return {
        "measured": f"{STEPS} steps at {SIDE} px, width 2: a second process",
        "seconds alone": statistics.median(alone),
        "seconds together": statistics.median(together),
        "times as fast": statistics.median(alone) / statistics.median(together),
        "rounds": statistics.median(rounds),
        "as fast by rounds": STEPS / statistics.median(rounds),
        "largest deviation": largest,
        "load before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cores": psutil.cpu_count(),
    }


def killed(running: server.Server, kills: int) -> Row:
    """A worker ended by SIGKILL at its third model call, in every picture."""
    armed, main = running.output / "armed", running.process.pid
    finished, named, largest, undisturbed, waits = 0, 0, 0.0, 0.0, []
    threads = node("DizzyDiffDevices", model=["2", 0], devices="cpu, cpu:1", width=0)
    for seed in range(100, 100 + kills):
        whole, _, _, _ = drawn(running, graph(96, armed, main, seed=seed, steps=12, width=1))
        drafted, _, _, _ = drawn(running, graph(96, armed, main, seed=seed, steps=12) | {"3": threads})
        undisturbed = max(undisturbed, off(drafted, whole))
        armed.touch()
        result, _, said, seconds = drawn(running, graph(96, armed, main, seed=seed, steps=12))
        finished += not armed.exists()
        named += said.count("was lost") == 1
        largest = max(largest, off(result, whole))
        waits.append(seconds)
    row = {
        "measured": f"{kills} workers killed in the middle",
        "pictures finished": finished,
        "named once": named,
        "largest deviation": largest,
        "undisturbed, by threads": undisturbed,
        "seconds of the picture": statistics.median(waits),
    }
    within = largest <= ROUNDING * max(undisturbed, TOLERANCE)
    return row if finished == named == kills and within else {**row, "failed": True}
