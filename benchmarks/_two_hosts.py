# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hosts on one: network namespaces with addresses and sockets of their own, and a cable between them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HERE, THERE, END = "10.77.0.1", "10.77.0.2", "cable"
"""Addresses of the two, and the name that each has for its end of the cable."""
ALONE = ("unshare", "--map-root-user", "--net")
"""What a program is started with to be on a host of its own."""


def can_be_had() -> bool:
    """Whether this system lets its user make network namespaces."""
    try:
        return subprocess.run([*ALONE, "ip", "link"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class OtherHost:
    """holder: a process that does nothing there."""

    holder: int

    def command(self, *command: str) -> list[str]:
        """The same command, there."""
        return ["nsenter", "--net", "--target", str(self.holder), *command]

    @property
    def cut(self) -> list[str]:
        """The command that cuts the cable, there."""
        return ["ip", "link", "set", END, "down"]

    def carry(self, mbit: int) -> None:
        """Let the cable carry so much in a second, each way; 0: what memory does."""
        for host in ([], self.command()):
            subprocess.run([*host, "tc", "qdisc", "delete", "dev", END, "root"], capture_output=True)
            if mbit:
                slow = ["rate", f"{mbit}mbit", "burst", "256kb", "latency", "500ms"]
                _run([*host, "tc", "qdisc", "add", "dev", END, "root", "tbf", *slow])

    def mend(self) -> None:
        _run(self.command("ip", "link", "set", END, "up"))


@contextlib.contextmanager
def other_host() -> Iterator[OtherHost]:
    """A second host beside this process, which must have been started with :data:`ALONE`."""
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        raise RuntimeError(f"start it by {' '.join(ALONE)}: this host has a network")
    asleep = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        ["unshare", "--net", *asleep], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout and holder.stdin
        holder.stdout.readline()
        other = OtherHost(holder.pid)
        _run(["ip", "link", "add", END, "type", "veth", "peer", "name", END, "netns", str(holder.pid)])
        for host, address in (([], HERE), (other.command(), THERE)):
            _run([*host, "ip", "address", "add", f"{address}/24", "dev", END])
            for name in ("lo", END):
                _run([*host, "ip", "link", "set", name, "up"])
        yield other
        holder.stdin.close()
        subprocess.run(["ip", "link", "delete", END], capture_output=True)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
