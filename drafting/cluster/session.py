# SPDX-License-Identifier: GPL-3.0-or-later
"""In a worker: a sampler that answers model calls instead of sampling."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Predict = Callable[[Any, dict[str, Any]], list[Any]]
"""(the sampler's model, its extra_args) -> answers."""


class Stopped(Exception):
    """Nobody wants this picture any more."""


class NotThere(Exception):
    """The graph did not come to the sampler that is asked; why."""


@dataclass
class _Asked:
    predict: Predict
    answer: Future[list[Any]] = field(default_factory=Future)


class Session:
    """One run of a graph. Its thread waits in the sampler, others ask it.

    A node may sample several times: each time is a visit, counted from 0.
    """

    def __init__(self, run: str, latent: Mapping[str, Any] | None = None) -> None:
        """latent: what the sampler has on the main machine, see ``latent_of``."""
        self.run, self.latent = run, latent or {}
        self._tasks: queue.SimpleQueue[_Asked | Tensor | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self.stopped = False
        self._visits, self._ended = 0, ""

    def serve(self, model: Any, extra_args: dict[str, Any]) -> Tensor:
        """Called in place of sampling; the picture that was made elsewhere. Raises :class:`Stopped`."""
        with self._changed:
            self._visits += 1
            self._changed.notify_all()
        while True:
            task = self._tasks.get()
            if task is None:
                raise Stopped
            if isinstance(task, Tensor):
                return task
            try:
                task.answer.set_result(task.predict(model, extra_args))
            except BaseException as error:  # whoever asked waits for it in another thread
                task.answer.set_exception(error)

    def ask(self, visit: int, predict: Predict) -> list[Any]:
        """What ``predict`` gives in the sampler's thread, once that is there. Raises :class:`NotThere`."""
        with self._changed:
            self._changed.wait_for(lambda: self._visits > visit or self._ended or self.stopped)
            if self._visits <= visit or self.stopped or self._ended:
                raise NotThere(self._ended or "the picture was given up")
            asked = _Asked(predict)
            self._tasks.put(asked)
        return asked.answer.result()

    def finish(self, result: Tensor) -> None:
        """Let the sampler return."""
        self._tasks.put(result)

    def stop(self) -> None:
        """Let the sampler raise :class:`Stopped`, as soon as its model call has ended."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
        self._tasks.put(None)

    def end(self, why: str) -> None:
        """The graph is through, wherever it came to. Whoever still waits for an answer gets none."""
        with self._changed:
            self._ended = why or "the graph ended before its sampler asked for a prediction"
            self._changed.notify_all()
        while not self._tasks.empty():
            task = self._tasks.get()
            if isinstance(task, _Asked):
                task.answer.set_exception(NotThere(self._ended))


SERVING: ContextVar[Session | None] = ContextVar("dizzydiff_serving", default=None)
"""In a worker, the session whose graph runs. None in a ComfyUI that draws pictures."""
