# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture drawn with drafts beside the same picture drawn plainly, and each prediction of it beside the
same state alone.

This is the one place where the benchmarks of families and of compositions touch drafting.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._sampling import SEED, draw, relative_rms

PLACES = {"one card": "", "batch": "batch", "two devices": "cpu, cpu:1"}
"""What Draft Devices is told, by the name of the row; nothing where the MODEL goes without it."""
BATCH_WIDTH = 4


@dataclass
class Trial:
    """What became of one picture. ``row_error`` and ``deviation`` are relative RMS, None where nothing is to
    be compared; ``rounds`` is 0 where nothing was drafted.
    """

    verdict: str = ""
    row_error: float | None = None
    deviation: float | None = None
    rounds: int = 0
    calls: int = 0
    warned: str = ""
    crash: str = ""

    @property
    def stands_aside(self) -> bool:
        return self.verdict.startswith("stands aside")

    def silently_off(self, allowed: float) -> bool:
        """Whether the picture is further off than allowed, and nobody said so."""
        return self.deviation is not None and not self.deviation <= allowed and not self.warned


class Heard(logging.Handler):
    """What the pack says while it is listened to."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))

    def said(self, level: int) -> list[str]:
        """What was said at least so loud, each sentence once."""
        return list(dict.fromkeys(text for at, text in self.lines if at >= level))


@contextmanager
def listening() -> Iterator[Heard]:
    log, heard = logging.getLogger("dizzydiff"), Heard()
    before = log.level, log.propagate
    log.addHandler(heard)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield heard
    finally:
        log.removeHandler(heard)
        log.level, log.propagate = before


@dataclass
class Call:
    """One call of the sampler's model: states of some noise levels at once, and what came of it."""

    thread: threading.Thread
    model: Any
    x: Tensor
    sigma: Tensor
    arguments: dict[str, Any]
    result: Tensor

    @property
    def several(self) -> bool:
        """Whether its noise levels are not one."""
        return bool((self.sigma != self.sigma[0]).any())


class Watched:
    """A SAMPLER that notes each prediction that another one asks for; of those made together or on another
    device it afterwards asks for the same states again, each alone and on the main device, while the guider
    can still answer.
    """

    def __init__(self, inner: Any, shapes: list[torch.Size] | None) -> None:
        self._inner, self._shapes = inner, shapes
        self.calls: list[Call] = []
        self.error: float | None = None

    @property
    def batched(self) -> bool:
        """Whether states of several noise levels went into one call."""
        return any(call.several for call in self.calls)

    def _parts(self, packed: Tensor) -> list[Tensor]:
        """Core packs a latent of several parts into one tensor."""
        import comfy.utils

        return comfy.utils.unpack_latents(packed, self._shapes) if self._shapes else [packed]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sample(self, *arguments: Any, **options: Any) -> Tensor:
        with noted(self.calls):
            result = self._inner.sample(*arguments, **options)
        self.error = self._worst()
        return result

    def _worst(self) -> float | None:
        alone = next((call for call in self.calls if not call.several), None)
        if alone is None:
            return None
        options = {
            key: value
            for key, value in alone.arguments["model_options"].items()
            if not key.startswith("multigpu")
        }
        arguments, rows = {**alone.arguments, "model_options": options}, alone.x.shape[0]
        errors = [
            relative_rms(self._parts(together), self._parts(alone.model(x, sigma, **arguments)))
            for call in self.calls
            if call.several or call.thread is not alone.thread
            for x, sigma, together in zip(
                *(each.split(rows) for each in (call.x, call.sigma, call.result)), strict=True
            )
        ]
        return max(errors, default=0.0)


@contextmanager
def noted(calls: list[Call]) -> Iterator[None]:
    """While it lasts, every call of a sampler's model is written down, of whatever thread."""
    lock = threading.Lock()

    def note(self: Any, x: Tensor, sigma: Tensor, arguments: dict[str, Any], result: Tensor) -> Tensor:
        with lock:
            calls.append(
                Call(threading.current_thread(), self, x.clone(), sigma.clone(), arguments, result.clone())
            )
        return result

    with each_call(note):
        yield


@contextmanager
def nudged(size: float) -> Iterator[None]:
    """While it lasts, every prediction is off by ``size`` of its RMS, in a direction drawn for it."""
    generator = torch.Generator().manual_seed(SEED)

    def nudge(self: Any, x: Tensor, sigma: Tensor, arguments: dict[str, Any], result: Tensor) -> Tensor:
        direction = torch.randn(result.shape, generator=generator).to(result)
        return result + direction * (size * result.square().mean().sqrt())

    with each_call(nudge):
        yield


@contextmanager
def each_call(
    then: Callable[[Any, Tensor, Tensor, dict[str, Any], Tensor], Tensor],
) -> Iterator[None]:
    """While it lasts, a sampler's model answers what ``then`` makes of model, x, sigma, arguments and its
    answer.
    """
    import comfy.samplers

    kind = comfy.samplers.KSamplerX0Inpaint
    original = kind.__call__

    def call(self: Any, x: Tensor, sigma: Tensor, *rest: Any, **arguments: Any) -> Tensor:
        return then(self, x, sigma, arguments, original(self, x, sigma, *rest, **arguments))

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = original


def spread(model: Any, place: str) -> Any:
    """The MODEL after Draft Devices, as the row of PLACES has it."""
    from ..drafting import devices

    told = PLACES[place]
    return devices.spread(model, told, BATCH_WIDTH if told == "batch" else 0) if told else model


def attempt(
    guider: Callable[[], Any],
    sampler: Any,
    sigmas: Tensor,
    latent: dict[str, Any],
    reference: list[Tensor],
    tolerance: float,
    around: Callable[[Any], Any] = lambda drafted: drafted,
    seed: int = SEED,
) -> Trial:
    """The picture with drafts, verified with ``tolerance``, beside the ``reference``; ``around`` is put round
    the drafted SAMPLER.
    """
    from ..drafting.sampler import DraftRefine, Settings

    trial, reports = Trial(), list[Any]()
    shapes = [part.shape for part in reference] if len(reference) > 1 else None
    drafted = around(DraftRefine(sampler, Settings(tolerance=tolerance), on_report=reports.append))
    watched = Watched(drafted, shapes)
    with listening() as heard:
        try:
            result = draw(guider(), watched, sigmas, latent, seed)
        except Exception as error:
            trial.crash = told(error)
            return trial
    trial.deviation = relative_rms(result, reference)
    trial.warned = " ".join(heard.said(logging.WARNING)).replace("DizzyDiff: ", "")
    widths = {len(states) for report in reports for states in report.rounds}
    if reports:
        trial.rounds = sum(len(report.rounds) for report in reports)
        trial.calls = sum(report.evaluations for report in reports)
    if widths - {1}:
        trial.row_error = watched.error
        trial.verdict = "drafted in batches" if watched.batched else "drafted, a state a call"
    elif reports and not trial.warned:
        skipped = sum(report.interpolations for report in reports)
        trial.verdict = f"one device, {skipped or 'no'} calls skipped"
    else:
        trial.verdict = f"stands aside: {reason(trial.warned)}"
    return trial


def reason(warned: str) -> str:
    """What a warning that something is not drafted gives as its reason."""
    return re.sub(r"^.*?(undrafted|without drafts): ", "", warned) or "without a word"


def told(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def plain(
    guider: Callable[[], Any], sampler: Any, sigmas: Tensor, latent: dict[str, Any], seed: int = SEED
) -> tuple[list[Tensor], str]:
    """The picture without drafts; or what it raised, with no picture."""
    try:
        return draw(guider(), sampler, sigmas, latent, seed), ""
    except Exception as error:
        return [], told(error)


def quiet() -> None:
    """ComfyUI without progress bars and its own log lines, one thread a device."""
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    logging.getLogger().setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
