# SPDX-License-Identifier: GPL-3.0-or-later
"""A network whose call is mostly launches, called by threads of one interpreter and by processes.

As a program, `python _launches.py CALLS`, it is one of these processes: it says that it is ready, waits for a
line, calls, and says that it is done.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import torch

LAYERS, WIDTH = 200, 16
"""So small that a layer is over as soon as it is launched."""


def network() -> torch.nn.Module:
    layers = (torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU()) for _ in range(LAYERS))
    return torch.nn.Sequential(*layers)


def call(model: torch.nn.Module, calls: int) -> None:
    x = torch.zeros(1, WIDTH)
    with torch.inference_mode():
        for _ in range(calls):
            model(x)


def by_threads(workers: int, calls: int) -> float:
    """Seconds in which each of so many threads makes so many calls, of a network of its own."""
    models = [network() for _ in range(workers)]
    for model in models:
        call(model, 1)
    threads = [threading.Thread(target=call, args=(model, calls)) for model in models]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def by_processes(workers: int, calls: int) -> float:
    """The same of processes, which are ready before the clock starts."""
    command = [sys.executable, __file__, str(calls)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(workers)
    ]
    told = [(process.stdin, process.stdout) for process in processes]
    for _, said in told:
        said.readline()  # type: ignore[union-attr]
    started = time.perf_counter()
    for go, _ in told:
        go.write(b"\n")  # type: ignore[union-attr]
        go.flush()  # type: ignore[union-attr]
    for _, said in told:
        said.readline()  # type: ignore[union-attr]
    seconds = time.perf_counter() - started
    for process in processes:
        process.communicate()
    return seconds


def rows(workers: tuple[int, ...], calls: int, repeats: int) -> list[dict[str, Any]]:
    """Calls a second over those of one thread alone; of repeats in turn the best, since other programs only
    slow down.
    """
    alone = min(by_threads(1, calls) for _ in range(repeats))
    made = []
    for count in workers:
        seconds = [(by_threads(count, calls), by_processes(count, calls)) for _ in range(repeats)]
        threads, processes = (min(each) for each in zip(*seconds, strict=True))
        row = {"launches": LAYERS, "workers": count, "call_ms": 1000 * alone / calls}
        made.append(row | {"threads": count * alone / threads, "processes": count * alone / processes})
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = network()
    call(model, 1)
    print("ready", flush=True)
    sys.stdin.readline()
    call(model, int(sys.argv[1]))
    print("done", flush=True)
