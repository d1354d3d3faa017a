# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray on this machine, for one ComfyUI: a program that ends, with all that it started, when its input does.

    python head.py FOLDER CPUS

So a ComfyUI that ends in whatever way leaves nothing behind; and Ray, which may end the process that started
it, ends this one. FOLDER is for logs and sockets, and removed in the end.
"""

from __future__ import annotations

import shutil
import sys

STORE_BYTES = 128 << 20
"""Ray's shared memory; what travels is smaller and goes around it."""
READY, LISTENS = "ready", "Ray listens beyond this machine"


def main(folder: str, cpus: str) -> None:
    """Prints one line: READY and the address, or what went wrong."""
    import ray

    try:
        try:
            ray.init(
                num_cpus=int(cpus),
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=STORE_BYTES,
                _temp_dir=folder,
            )
            addresses = {node["NodeManagerAddress"] for node in ray.nodes()}
            alone = addresses <= {"127.0.0.1", "::1"}
            said = f"{READY} {ray.get_runtime_context().gcs_address}" if alone else f"{LISTENS}: {addresses}"
            print(said, flush=True)
        except Exception as error:
            print(" ".join(f"{type(error).__name__}: {error}".split()), flush=True)
        sys.stdin.buffer.read()
        ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
