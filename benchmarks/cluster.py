# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft Cluster on this machine: what Ray adds to a round, what a second process gains, killed workers, and
links that are cut.

Needs Ray (requirements-dev.txt). Everything runs in a real ComfyUI, with workers on its CPU.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from ..devtools import comfyui, server
from ._two_hosts import ALONE, can_be_had

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "tests" / "e2e" / "cluster_faults"
STEPS, TOLERANCE, SIDE = 50, 0.01, 384
ROUNDING = 1.05
"""How much further than an undisturbed picture, or the tolerance, one may be off that lost a worker."""
SHAPES = ((1, 4, 128, 128), (1, 16, 21, 90, 160))
"""Of a picture's latent and of a video's."""
Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    rounds, pictures, kills = (20, 1, 2) if quick else (100, 3, 20)
    rows = [round_trip(rounds, shape) for shape in SHAPES]
    with comfy() as running:
        rows += [speed(running, pictures), killed(running, kills)]
    return rows + links(quick)


def round_trip(rounds: int, shape: tuple[int, ...]) -> Row:
    """A state to a worker on this host and back."""
    from ..drafting.cluster.connection import Head, connect

    head = Head(1, lambda: None)
    ray = connect("local", head)
    times = echoed(ray, rounds, shape)
    ray.shutdown()
    return trip("one host", shape, times)


def echoed(ray: Any, rounds: int, shape: tuple[int, ...]) -> list[float]:
    """Milliseconds, sorted, for a state to a worker that answers at once with a prediction, and back: all
    that Ray and the packing add to a round.
    """
    from ..drafting.cluster.wire import packed, unpacked

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
    return sorted(times[5:])


def trip(link: str, shape: tuple[int, ...], times: list[float]) -> Row:
    """times: sorted."""
    return {
        "measured": f"round trip of a latent {'x'.join(map(str, shape))}, {link}",
        "link": link,
        "bytes": 4 * math.prod(shape),
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


def graph(side: int, patch: dict[str, Any], where: dict[str, Any], **sampling: Any) -> dict[str, Any]:
    """A picture of the embedded teacher. patch: what changes the MODEL; where: where it is drafted."""
    told = {"seed": 1, "steps": STEPS, "cfg": 2.0, "sampler_name": "euler", "scheduler": "karras"}
    told |= {"denoise": 1.0, "mode": "verified", "predictions_per_round": 0, "tolerance": TOLERANCE}
    return {
        "1": node("DizzyDiffLoadPipeline", pipeline="tiny/teacher"),
        "2": patch,
        "3": where,
        "4": node("CLIPTextEncode", clip=["1", 1], text="a large red circle on white"),
        "5": node("CLIPTextEncode", clip=["1", 1], text=""),
        "6": node("EmptyLatentImage", width=side, height=side, batch_size=1),
        "7": node(
            "DizzyDiffDraftRefineKSampler", model=["3", 0], positive=["4", 0], negative=["5", 0],
            latent_image=["6", 0], **{**told, **sampling},
        ),
        "8": node("SaveLatent", samples=["7", 0], filename_prefix="cluster"),
    }  # fmt: skip


def fault(running: server.Server, kind: str, armed: Path) -> dict[str, Any]:
    return node("FaultInWorkers", model=["1", 0], fault=kind, armed=str(armed), main=running.process.pid)


def one_worker(address: str = "local") -> dict[str, Any]:
    """Beside ComfyUI's own device."""
    return node("DizzyDiffCluster", model=["2", 0], address=address, workers=1, devices="cpu")


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
    pictured = functools.partial(graph, SIDE, fault(running, "kill", running.output / "never"), one_worker())
    alone, together, largest, rounds = [], [], 0.0, []
    for seed in range(pictures + 1):
        one, _, _, seconds = drawn(running, pictured(seed=seed, predictions_per_round=1))
        two, numbers, _, _ = drawn(running, pictured(seed=seed))
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
    armed = running.output / "armed"
    faulty = fault(running, "kill", armed)
    row = disturbed(running, range(100, 100 + kills), faulty, one_worker(), armed.touch)
    return {"measured": f"{kills} workers killed in the middle", **row}


def disturbed(
    running: server.Server,
    seeds: Sequence[int],
    faulty: dict[str, Any],
    where: dict[str, Any],
    arm: Callable[[], None],
    mend: Callable[[], None] = lambda: None,
) -> Row:
    """Pictures of 12 steps, each beside itself plain and by threads, on devices that count as equal: a busy
    machine would leave the worker idle. arm: called before a picture that is to be disturbed; mend: after it.
    """
    pictured = functools.partial(graph, 96, node("EqualDevices", model=["9", 0]), steps=12)
    faults = {"9": faulty}
    threads = node("DizzyDiffDevices", model=["2", 0], devices="cpu, cpu:1")
    finished, named, largest, undisturbed, waits = 0, 0, 0.0, 0.0, []
    for seed in seeds:
        whole, _, _, _ = drawn(running, pictured(threads, seed=seed, predictions_per_round=1) | faults)
        drafted, _, _, _ = drawn(running, pictured(threads, seed=seed) | faults)
        undisturbed = max(undisturbed, off(drafted, whole))
        arm()
        result, _, said, seconds = drawn(running, pictured(where, seed=seed) | faults)
        mend()
        finished += 1
        named += said.count("was lost") == 1
        largest = max(largest, off(result, whole))
        waits.append(seconds)
        print(f"  picture {finished} of {len(seeds)}: {seconds:.0f} s", file=sys.stderr, flush=True)
    row = {
        "pictures finished": finished,
        "named once": named,
        "largest deviation": largest,
        "undisturbed, by threads": undisturbed,
        "seconds of the picture": statistics.median(waits),
    }
    within = largest <= ROUNDING * max(undisturbed, TOLERANCE)
    return row if finished == named == len(seeds) and within else {**row, "failed": True}


def links(quick: bool) -> list[Row]:
    """The rows of ``bench cluster_links``, which is run on a host of its own."""
    if not can_be_had():
        return [{"measured": "links between two hosts", "not run": "no network namespaces can be made here"}]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [*ALONE, sys.executable, "-P", str(ROOT / "benchmarks" / "__main__.py"), "cluster_links"]
        ended = subprocess.run([*command, *["--quick"] * quick, "--json", str(rows)])
        if not rows.is_file():
            return [{"measured": "links between two hosts", "failed": f"exit status {ended.returncode}"}]
        return list(json.loads(rows.read_text(encoding="utf-8"))["rows"])
