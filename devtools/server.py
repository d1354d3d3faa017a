# SPDX-License-Identifier: GPL-3.0-or-later
"""A real ComfyUI on a free loopback port, for as long as it is needed."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import environment, tail


class ServerFailed(Exception):
    """ComfyUI did not start, or stopped; the message ends with its log."""


@dataclass(frozen=True)
class Server:
    """A running ComfyUI; ``log`` is what it printed, ``base`` its base directory, ``output`` where it writes
    pictures.
    """

    port: int
    log: Path
    base: Path
    output: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, path: str, body: Any = None, timeout: float = 30.0) -> Any:
        """JSON answer, None where it is empty, to a GET of ``path``, or to a POST where there is a body.

        Raises :class:`urllib.error.HTTPError`.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        # Loopback is reached directly, whatever proxy the environment names.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=timeout
        ) as answer:
            told = answer.read()
            return json.loads(told) if told else None

    def run(self, prompt: dict[str, Any], timeout: float = 300.0) -> dict[str, Any]:
        """Queue an API-format graph; its history entry, once it has ended in whatever way.

        Raises :class:`urllib.error.HTTPError` where ComfyUI refuses it.
        """
        return self.finished(self.request("/prompt", {"prompt": prompt})["prompt_id"], timeout)

    def finished(self, prompt_id: str, timeout: float = 300.0) -> dict[str, Any]:
        """The history entry of a prompt, once it has ended in whatever way; raises TimeoutError."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if entry := self.request(f"/history/{prompt_id}").get(prompt_id):
                return entry
            time.sleep(0.02)
        raise TimeoutError(f"prompt {prompt_id} did not end within {timeout:.0f} s. {_ending(self.log)}")


def has_cuda() -> bool:
    """Whether an NVIDIA driver sees at least one device; asks the driver, since importing torch takes
    seconds.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def command(python: Path, comfyui: Path, base: Path, output: Path, port: int, cpu: bool) -> list[str]:
    """How ComfyUI is started: headless, offline, its data in ``base`` and ``output``, its own tree left
    clean.
    """
    flags = [
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--base-directory",
        str(base),
        "--output-directory",
        str(output),
    ]
    flags += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes"]
    return [str(python), str(comfyui / "main.py"), *flags, *(["--cpu"] if cpu else [])]


def _ending(log: Path) -> str:
    return f"Its log, {log}, ends:\n{tail(log)}"


def _await_ready(server: Server, timeout: float) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise ServerFailed(
                f"ComfyUI stopped with exit status {server.process.returncode}. {_ending(server.log)}"
            )
        try:
            server.request("/system_stats", timeout=5)
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise ServerFailed(f"ComfyUI did not answer within {timeout:.0f} s. {_ending(server.log)}")


def _stop(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(
    python: Path, comfyui: Path, base: Path, output: Path, log: Path, timeout: float = 300.0
) -> Iterator[Server]:
    """A ComfyUI that answers, stopped when the block is left in whatever way; raises
    :class:`ServerFailed`.
    """
    for folder in (output, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(python, comfyui, base, output, port, cpu=not has_cuda()),
            cwd=base,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Server(port, log, base, output, process)
        _await_ready(server, timeout)
        yield server
    finally:
        _stop(process)
