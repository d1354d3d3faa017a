# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on core's threads, one for each device: whatever happens there, an answer comes back, and the user may
interrupt.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, TypeVar

import comfy.model_management
import torch

POLL_S = 0.05
"""Seconds between two looks whether the user interrupts, while a device is waited for."""
T = TypeVar("T")
Answer = tuple[T | None, BaseException | None]
"""What a device made, or why it did not."""


class Workers:
    """pool: core's ``MultiGPUThreadPool``."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def start(self, place: torch.device, work: Callable[..., T], *given: Any) -> queue.SimpleQueue[Answer[T]]:
        """Have a device work, after what it does already. Its answer comes by the queue."""
        answer: queue.SimpleQueue[Answer[T]] = queue.SimpleQueue()

        def run() -> None:
            # Core's thread ends with what is no Exception, and then never answers.
            try:
                answer.put((work(*given), None))
            except BaseException as error:
                answer.put((None, error))

        self._pool.submit(place, run)
        return answer

    def wait(self, place: torch.device, answer: queue.SimpleQueue[Answer[T]]) -> Answer[T]:
        """Raises InterruptProcessingException where the user interrupts, though the device may never
        answer.
        """
        while True:
            try:
                answered = answer.get(timeout=POLL_S)
            except queue.Empty:
                comfy.model_management.throw_exception_if_processing_interrupted()
                continue
            self._pool.get_result(place)  # nothing; the thread is free again
            return answered
