# SPDX-License-Identifier: GPL-3.0-or-later
"""The workers of one Draft Cluster, as the main process sees them."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ...common.messages import Say
from . import bootstrap
from .connection import LOCAL, POLL_S, Head, Look, connect, connected
from .entrance import Entrance, Wish, entrances_here, entrances_there
from .version import version

START_S = 300.0
"""Seconds in which a worker must have its ComfyUI ready."""
ALIVE_S = 10.0
"""Seconds in which a worker that was ready before must show that it still is."""
AT_A_TIME = 4
"""Calls that a worker takes at the same time: one evaluates, others begin, stop or ask."""


class Lost(Exception):
    """A worker that is no more, or does not answer; why."""


class Failed(Exception):
    """What a worker could not do; why."""


@dataclass(eq=False)
class Member:
    """A worker: its name, "host:device", and Ray's handle of it."""

    name: str
    pid: int
    _ray: ModuleType = field(repr=False)
    _actor: Any = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def ask(self, what: str, *given: Any) -> Any:
        """What :func:`answer` waits for. Raises :class:`Lost`."""
        try:
            return self._actor.ask.remote(what, *given)
        except Exception as error:
            raise Lost(_said(error)) from error

    def answer(self, asked: Any, patience: float, look: Look) -> Any:
        """What was asked for. look: called again and again, to raise where the user interrupts.

        Raises :class:`Lost` after ``patience`` seconds as well, and :class:`Failed`.
        """
        told = wait(self._ray, asked, patience, look)
        if "error" in told:
            raise Failed(told["error"])
        return told["answer"]

    def kill(self) -> None:
        """So that the next picture starts another in its place."""
        try:
            self._ray.kill(self._actor, no_restart=True)
        except Exception:  # it is gone already
            return

    def lives(self, look: Look) -> bool:
        """Whether it answers. One that does not is ended, so that another can take its place."""
        try:
            wait(self._ray, self.ask("facts"), ALIVE_S, look)
        except Lost:
            self.kill()
            return False
        return True


class Pool:
    """Workers by their place. Each is started when it is first needed, and again after it was lost."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self._head: Head | None = None
        self._connection = ""
        self._members: dict[int, Member] = {}
        self._run: tuple[Any, str, int] = (None, "", 0)

    def gather(self, say: Say, look: Look) -> list[Member]:
        """All workers that answer. Raises :class:`NoRay` and :class:`NoCluster`; those that cannot work are
        named to ``say``.
        """
        wish, ray = self.wish, self._connect(say, look)
        if wish.address == LOCAL:
            entrances = entrances_here(wish.devices)
        else:
            entrances = entrances_there(wish, ray.cluster_resources(), say)
        self._members = {place: each for place, each in self._members.items() if each.lives(look)}
        started = {
            place: _start(ray, each) for place, each in enumerate(entrances) if place not in self._members
        }
        for place, actor in started.items():
            try:
                facts = wait(ray, actor.enter.remote(entrances[place].told), START_S, look)
                self._members[place] = self._member(ray, actor, facts)
            except (Lost, Failed) as why:
                say(f"Draft Cluster goes on without worker {place + 1}: {why}.")
        return [self._members[place] for place in sorted(self._members)]

    def visit(self, context: Any) -> tuple[str, int]:
        """(run, visit) of a sampler that begins to sample: a node that samples again goes on in its run.

        context: ComfyUI's, of one execution of one node.
        """
        before, run, visits = self._run
        run, visits = (run, visits + 1) if before is context and run else (uuid.uuid4().hex, 0)
        self._run = context, run, visits
        return run, visits

    def give_up(self) -> None:
        """The run is over, wherever its node is."""
        self._run = None, "", 0

    def free(self, caches: bool) -> None:
        """Have all workers unload their models, and forget what nodes gave (caches), between two pictures."""
        for member in list(self._members.values()):
            with contextlib.suppress(Lost):
                member.ask("free", caches)

    def _connect(self, say: Say, look: Look) -> ModuleType:
        wish = self.wish
        # A head is connected to once: where it no longer answers, Ray would wait for it without end.
        if wish.address == LOCAL and not (self._head and self._head.lives and connected(LOCAL, self._head)):
            say("Draft Cluster starts Ray and its workers on this machine. That takes a while, once.")
            self._head = Head(len(wish.devices), look)
        ray = connect(wish.address, self._head)
        context = ray.get_runtime_context()
        if (now := f"{context.get_node_id()} {context.get_job_id()}") != self._connection:
            self._connection, self._members = now, {}  # workers of a connection end with it
        return ray

    def _member(self, ray: ModuleType, actor: Any, facts: dict[str, Any]) -> Member:
        if "error" in facts:
            raise Failed(facts["error"])
        if facts["version"] != version():
            raise Failed(
                f"{facts['host']} has another version of this pack ({facts['version']}, here {version()}); "
                "bring both to the same"
            )
        host = "local" if self.wish.address == LOCAL else facts["host"]
        name, taken = f"{host}:{facts['device']}", {each.name for each in self._members.values()}
        names = (name, *(f"{name}#{number}" for number in range(2, 2 + len(taken))))
        return Member(next(each for each in names if each not in taken), facts["pid"], ray, actor)


@functools.cache
def pools() -> dict[Wish, Pool]:
    """The one there is, if any."""
    return {}


def pool_of(wish: Wish) -> Pool:
    """The workers outlast a MODEL, and so does what they have loaded. One cluster at a time: where another
    is wished for, the workers of the last one end.
    """
    kept = pools()
    if wish not in kept:
        kept.clear()
        kept[wish] = Pool(wish)
    return kept[wish]


def _start(ray: ModuleType, entrance: Entrance) -> Any:
    ray.cloudpickle.register_pickle_by_value(sys.modules[bootstrap.__name__])
    host = ray.remote(bootstrap.Host)
    return host.options(max_concurrency=AT_A_TIME, **entrance.options).remote()


def wait(ray: ModuleType, asked: Any, patience: float, look: Look) -> Any:
    """What a worker answers. Raises :class:`Lost`, and whatever ``look`` does."""
    end = time.monotonic() + patience
    while True:
        try:
            return ray.get(asked, timeout=POLL_S)
        except ray.exceptions.GetTimeoutError as late:
            look()
            if time.monotonic() > end:
                raise Lost(f"it did not answer within {patience:.0f} s") from late
        except ray.exceptions.RayError as error:
            raise Lost(_said(error)) from error


def _said(error: Exception, most: int = 160) -> str:
    """The first sentence of what Ray says, which goes on for pages."""
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:most]
