# SPDX-License-Identifier: GPL-3.0-or-later
"""In a process of its own: private memory while students load, over the size of each file.

peak_memory.py COMFYUI CLONE WARM_UP_FILE FILE...
"""

from __future__ import annotations

import runpy
import sys
import threading
from pathlib import Path


def private_bytes() -> int:
    """RssAnon: resident memory that is not backed by a file."""
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("RssAnon")
    )


def main(comfyui: str, clone: str, warm_up: str, *files: str) -> None:
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = True
    runpy.run_path(f"{clone}/devtools/package.py")["load_package"]("dizzydiff", Path(clone))
    from dizzydiff.students.loader import Source, load_student

    load_student(Source(Path(warm_up), "warm-up"))
    for file in map(Path, files):
        before = peak = private_bytes()
        done = threading.Event()

        def watch(done: threading.Event = done) -> None:
            nonlocal peak
            while not done.wait(0.001):
                peak = max(peak, private_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        model = load_student(Source(file, file.name))
        done.set()
        watcher.join()
        print((max(peak, private_bytes()) - before) / file.stat().st_size)
        del model


main(*sys.argv[1:])
