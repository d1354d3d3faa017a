# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft Cluster over a cable between two hosts: what Ray adds to the wire's time, and cables that are cut.

Part of ``bench cluster``, which starts it on a host of its own: two network namespaces on one machine, with
real addresses and sockets.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ._two_hosts import HERE, THERE, OtherHost, other_host
from .cluster import SHAPES, Row, comfy, disturbed, echoed, fault, one_worker, trip

ADDRESS, WIRE_PORT, READY_S = f"{HERE}:6379", 5001, 120.0
INLINE = ("RAY_max_direct_call_object_size", "RAY_task_rpc_inlined_bytes_limit")
GIVE_UP = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3", "initial_delay_ms": "1000"}
"""So that Ray takes a machine for lost after seconds, not after half a minute."""
ECHO = """
import socket, sys
listening = socket.create_server(("", int(sys.argv[1])))
print(flush=True)
joined, _ = listening.accept()
while size := int.from_bytes(joined.recv(8), "big"):
    got = bytearray()
    while len(got) < size:
        got += joined.recv(1 << 20)
    joined.sendall(got)
"""


def run(quick: bool) -> list[Row]:
    from ..drafting.cluster.connection import INLINE_BYTES

    rounds, cuts = (3, 2) if quick else (20, 20)
    os.environ |= dict.fromkeys(INLINE, INLINE_BYTES)
    os.environ |= {
        "RAY_worker_niceness": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    os.environ |= {f"RAY_health_check_{name}": value for name, value in GIVE_UP.items()}
    with other_host() as other, tempfile.TemporaryDirectory(prefix="ray") as folder, head(Path(folder)):
        rows = []
        for mbit in (0, 10_000, 1_000):
            other.carry(mbit)
            with member(other, Path(folder)):
                rows += [beside_the_wire(other, rounds, mbit, shape) for shape in SHAPES]
        other.carry(0)
        return [*rows, cut(other, Path(folder), cuts)]


def beside_the_wire(other: OtherHost, rounds: int, mbit: int, shape: tuple[int, ...]) -> Row:
    """A latent to the other host and back, by Ray and by a bare socket."""
    import ray

    ray.init(ADDRESS, log_to_driver=False, configure_logging=False)
    try:
        by_ray = echoed(ray, rounds, shape)
    finally:
        ray.shutdown()
    wire = by_socket(other, rounds, 4 * math.prod(shape))
    row = trip(f"two hosts, {mbit / 1000:g} Gb/s" if mbit else "two hosts, as fast as memory", shape, by_ray)
    return {**row, "wire's least ms": wire[0], "times the wire's": by_ray[0] / wire[0]}


def by_socket(other: OtherHost, rounds: int, size: int) -> list[float]:
    """Milliseconds, sorted, for so many bytes there and back."""
    times, content = [], bytes(size)
    echo = other.command(sys.executable, "-c", ECHO, str(WIRE_PORT))
    with subprocess.Popen(echo, stdout=subprocess.PIPE) as there:
        assert there.stdout
        there.stdout.readline()
        with socket.create_connection((THERE, WIRE_PORT)) as joined:
            for _ in range(rounds + 2):
                started, got = time.perf_counter(), 0
                joined.sendall(size.to_bytes(8, "big") + content)
                while got < size:
                    got += len(joined.recv(1 << 20))
                times.append(1000 * (time.perf_counter() - started))
            joined.sendall(bytes(8))
    return sorted(times[2:])


def cut(other: OtherHost, folder: Path, cuts: int) -> Row:
    """The cable is cut at the worker's third model call, in every picture, and mended after it."""
    with contextlib.ExitStack() as running_there, comfy() as running:
        armed = running.output / "armed"

        def arm() -> None:
            running_there.enter_context(member(other, folder))
            armed.write_text(" ".join(other.cut), encoding="utf-8")

        def mend() -> None:
            other.mend()
            running_there.close()

        faulty = fault(running, "run", armed)
        row = disturbed(running, range(200, 200 + cuts), faulty, one_worker(ADDRESS), arm, mend)
    return {"measured": f"{cuts} cables cut in the middle", **row}


def head(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Ray on this host, without a place for workers."""
    told = ["--head", f"--node-ip-address={HERE}", "--port=6379", "--num-gpus=0", "--num-cpus=0"]
    return started([*told, "--include-dashboard=false", f"--temp-dir={folder}"], folder / "head.log")


def member(other: OtherHost, folder: Path) -> contextlib.AbstractContextManager[None]:
    """The line for a further machine."""
    told = [f"--address={ADDRESS}", f"--node-ip-address={THERE}", "--num-cpus=1", "--num-gpus=0"]
    return started(told, folder / "member.log", other)


@contextlib.contextmanager
def started(told: list[str], log: Path, other: OtherHost | None = None) -> Iterator[None]:
    """A ``ray start``, here or there, until it is left; one that has ended by itself is left as well."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *told]
    command += ["--disable-usage-stats", "--block"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            other.command(*command) if other else command, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + READY_S
        while "Ray runtime started" not in (said := log.read_text(encoding="utf-8", errors="replace")):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Ray did not start: {said[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
