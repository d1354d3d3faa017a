# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray: started beside this process and for it alone, or a running cluster joined."""

from __future__ import annotations

import os
import queue
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ..errors import NoCluster, NoRay
from .head import READY

LOCAL, AUTO = "local", "auto"
NAMESPACE = "dizzydiff "
"""Of Ray, with what it is connected to behind it: tells a connection of ours from another pack's."""
ANSWER_S, START_S, POLL_S = 5.0, 120.0, 0.05
"""Seconds: within which somebody at an address must answer, and Ray must have started; between two looks
whether the user interrupts.
"""
INLINE_BYTES = str(64 << 20)
"""Up to this size Ray sends tensors with the call, which is sooner than by way of its shared memory."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # a round waits for its workers
    "RAY_max_direct_call_object_size": INLINE_BYTES,
    "RAY_task_rpc_inlined_bytes_limit": INLINE_BYTES,
    # Ray's switch for loopback, which it throws by itself on Windows and macOS. Named addresses stay theirs.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
OF_COMFYUI = {"RAY_gcs_rpc_server_reconnect_timeout_s": "86400"}
"""Ray ends a process whose head has been gone for a minute. ComfyUI is to stay."""
OF_HEAD = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
TOKEN, MODE, ADDRESS = "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ADDRESS"
EXPECTED = f'Expected "{LOCAL}", "{AUTO}", or the address of a Ray head such as 192.168.1.10:6379.'
Look = Callable[[], None]
"""Called again and again while something is waited for, to raise where the user interrupts."""


def check_address(address: str) -> str:
    """The address, trimmed. Raises :class:`NoCluster` for what is none."""
    wanted = address.strip()
    found = re.fullmatch(r"\[?[\w.:-]+?\]?:(\d{1,5})", wanted)
    if wanted.lower() in (LOCAL, AUTO):
        return wanted.lower()
    if found is None or not 0 < int(found[1]) < 65536:
        raise NoCluster(f"address: got {address!r}. {EXPECTED}")
    return wanted


def import_ray() -> ModuleType:
    """Raises :class:`NoRay`."""
    for name, value in {**SETTINGS, **OF_COMFYUI}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise NoRay(
            f"Draft Cluster needs Ray, which cannot be imported here ({error}). Install it into the Python "
            "that runs ComfyUI, `python -m pip install ray`, and start ComfyUI again; or use Draft Devices."
        ) from error
    return ray


class Head:
    """A Ray on loopback, with a secret of its own, that ends when this process or this object does."""

    def __init__(self, cpus: int, look: Look) -> None:
        """cpus: workers it has place for. Raises :class:`NoRay` and :class:`NoCluster`."""
        if "ray" in sys.modules and MODE not in os.environ:
            raise NoCluster(
                "Ray runs in this ComfyUI already, for another address or another pack. Restart ComfyUI to "
                f"use {LOCAL!r}."
            )
        os.environ.setdefault(MODE, "token")  # Ray reads both when it is imported
        os.environ.setdefault(TOKEN, secrets.token_hex(32))
        import_ray()
        self.folder = tempfile.mkdtemp(prefix="dizzydiff-ray-")
        environment = {**os.environ, **SETTINGS, **OF_HEAD}
        environment.pop(ADDRESS, None)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("head.py")), self.folder, str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert self._process.stdin is not None
        # A program that runs is kept by Python, and its input open, though nobody else knows it any more.
        weakref.finalize(self, self._process.stdin.close)
        said = self._first_line(look)
        ready, _, self.address = said.partition(" ")
        if ready != READY:
            raise NoCluster(f"Ray could not be started on this machine: {said[:400]}")

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def _first_line(self, look: Look) -> str:
        assert self._process.stdout is not None
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        read = self._process.stdout.readline
        threading.Thread(target=lambda: lines.put(read()), daemon=True).start()
        for _ in range(int(START_S / POLL_S)):
            try:
                return lines.get(timeout=POLL_S).decode(errors="replace").strip() or "it ended"
            except queue.Empty:
                look()
        return f"it was not ready within {START_S:.0f} s"


def connect(address: str, head: Head | None) -> ModuleType:
    """Ray, connected to ``address`` (see :func:`check_address`), or to the head that was started here.

    What was connected for us before is let go. Raises :class:`NoRay`, :class:`NoCluster`.
    """
    ray, mine = import_ray(), _namespace(address, head)
    if head is None:
        knock(address)
    if connected(address, head):
        return ray
    if ray.is_initialized():
        now = ray.get_runtime_context().namespace
        if not now.startswith(NAMESPACE):
            raise NoCluster(
                "Another pack has connected this ComfyUI to a Ray cluster already. Remove or disable it."
            )
        ray.shutdown()
    quiet = {"namespace": mine, "log_to_driver": False, "configure_logging": False}
    try:
        if head is None:
            ray.init(address=address, **quiet)
        else:
            ray.init(address=head.address, _temp_dir=head.folder, **quiet)
    except Exception as error:
        raise NoCluster(f"No Ray cluster could be used at {address!r}: {_short(error)}") from error
    return ray


def connected(address: str, head: Head | None) -> bool:
    """Whether there is a connection to it that answers."""
    ray = import_ray()
    if not ray.is_initialized() or ray.get_runtime_context().namespace != _namespace(address, head):
        return False
    return _answers(ray)


def _namespace(address: str, head: Head | None) -> str:
    return NAMESPACE + (address if head is None else head.folder)


def _answers(ray: ModuleType) -> bool:
    """Whether the head still knows a node that lives. Where it is gone, Ray waits for it."""
    said: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            said.put(any(node["Alive"] for node in ray.nodes()))
        except Exception:
            said.put(False)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return said.get(timeout=ANSWER_S)
    except queue.Empty:
        return False


def knock(address: str) -> None:
    """Raises :class:`NoCluster` where nobody is at a named address. Ray itself tries for a minute."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise NoCluster(
            f"No Ray cluster could be used at {address!r}: {error}. Start one there by `ray start --head`, "
            "and see that firewalls let its port through."
        ) from error


def _short(error: Exception, most: int = 400) -> str:
    """What Ray says, without the pages that follow."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else f"{text[:most]} ..."
