# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers of unequal speed are given what devices of that speed are: by a clock that only model calls set
forward. The workers are stand-ins in this process; tests/e2e/test_cluster.py has real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
import torch
from torch import Tensor

from dizzydiff.benchmarks._slowed import SimulatedClock, at_each_call, lasting
from dizzydiff.drafting.backends.base import Request
from dizzydiff.drafting.backends.cluster import Cluster, Run
from dizzydiff.drafting.cluster.pool import Lost, Member
from dizzydiff.drafting.cluster.wire import packed, unpacked
from dizzydiff.drafting.devices import clustered
from dizzydiff.drafting.report import Report
from dizzydiff.drafting.sampler import DraftRefine, Settings

from .drafts import TOLERANCE, Prompts, distance, plain, sampled
from .test_unequal_devices import STEPS, Devices, evaluated

pytestmark = pytest.mark.usefixtures("one_thread_a_device")


class Near(Member):
    """Answers with the main device's network, when it is waited for."""

    def __init__(self, name: str, request: Request, pass_time: Callable[[], None]) -> None:
        super().__init__(name, 0, None, None)  # type: ignore[arg-type]
        self._request, self._pass_time = request, pass_time

    def ask(self, what: str, *given: Any) -> Any:
        return given

    def answer(self, asked: Any, patience: float, look: Any) -> Any:
        _, _, states, _, _ = asked
        self._pass_time()
        with torch.inference_mode():
            return [packed(self._prediction(unpacked(sent), sigma)) for sent, sigma in states]

    def _prediction(self, x: Tensor, sigma: float) -> Tensor:
        options = dict(self._request.options)
        return self._request.model(x, x.new_full([len(x)], sigma), None, model_options=options)[None]

    def kill(self) -> None:
        pass


class Cables:
    """A pool that is told when a worker was lost."""

    def give_up(self) -> None:
        pass


class Workers:
    """A main device, and workers beside it, of which each call takes so many seconds."""

    def __init__(self, model: Any, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.said, self.seconds = SimulatedClock(), list[str](), seconds
        self.lost_at = 0
        self.model = clustered(model, Cables(), 0)
        monkeypatch.setattr(Cluster, "make", classmethod(self._make))

    def _make(self, kind: type[Cluster], request: Request) -> Cluster:
        main, *others = self.seconds
        calls = 0

        def passing(seconds: float) -> Callable[[], None]:
            def pass_time() -> None:
                nonlocal calls
                calls += 1
                if calls == self.lost_at:
                    raise Lost("its cable was cut")
                self.clock.forward(seconds - main)  # the network has them take the main device's time

            return pass_time

        members = [Near(f"box:{i}", request, passing(each)) for i, each in enumerate(others, 1)]
        return kind(request, members, Run("run", 0))

    def picture(self, prompts: Prompts) -> tuple[Tensor, Report]:
        reports: list[Report] = []
        sampler = DraftRefine(
            comfy.samplers.sampler_object("euler"),
            Settings("verified", 0, TOLERANCE),
            on_report=reports.append,
            on_message=self.said.append,
            clock=self.clock,
        )
        with at_each_call(self.model, [lasting(self.clock, self.seconds[0])]):
            result = sampled(self.model, prompts, sampler, steps=STEPS)
        return result, reports[0]


@pytest.mark.parametrize("seconds", [[1.0, 1.0], [1.0, 2.0], [1.0, 1.4, 3.0], [4.0, 1.0], [2.0, 1.0]])
def test_workers_draw_the_picture_of_threads_of_their_speed(
    seconds: list[float], teacher: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(teacher, seconds, monkeypatch)
    threads = Devices(teacher, seconds)
    for _ in range(2):
        result, report = workers.picture(prompts)
        expected, by_threads = threads.picture(prompts)
        assert torch.equal(result, expected)
        named = {f"cpu:{i}": f"box:{i}" for i in range(1, len(seconds))}
        assert evaluated(report) == [
            [(call, named.get(device, device), rounds) for call, device, rounds in calls]
            for calls in evaluated(by_threads)
        ]


def test_a_worker_that_does_not_pay_is_left_out_and_named(
    teacher: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(teacher, [1.0, 4.0], monkeypatch)
    _, report = workers.picture(prompts)
    assert report.speeds == {"cpu": 1.0, "box:1": 0.25}
    assert any("box:1 evaluates nothing: a call takes 4 times as long" in each for each in workers.said)


def test_a_worker_lost_at_a_far_draft_is_left_out_and_the_image_is_finished(
    teacher: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(teacher, [1.0, 2.0], monkeypatch)
    workers.picture(prompts)
    workers.lost_at = 4
    result, report = workers.picture(prompts)
    assert sum("the worker box:1 was lost (its cable was cut)" in each for each in workers.said) == 1
    assert sum(call.device == "box:1" for calls in report.rounds for call in calls) == 2
    assert distance(result, plain(teacher, prompts, steps=STEPS)) < TOLERANCE
