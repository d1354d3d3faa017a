# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel is used where it has proved itself, and whatever is wrong with it, the result is PyTorch's."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from devtools.pretend_device import DEVICE, Away, booked
from dizzydiff.kernels.carry import carry
from dizzydiff.kernels.device import SideStream, Stopwatch, Work, current
from dizzydiff.kernels.dispatch import Dispatcher, shapes
from dizzydiff.kernels.linear_combinations import linear_combinations
from dizzydiff.kernels.qualification import CONCLUSIVE, LAUNCHES, Implementation, Operation


@dataclass
class PretendedWorkbench:
    """Takes every device; trials wait until :meth:`work`; time is what ``clock`` says."""

    clock: list[float] = field(default_factory=lambda: [0.0])
    waiting: list[Work] = field(default_factory=list)

    def has_kernels(self, device: torch.device) -> bool:
        return True

    def later(self, work: Work, last_call: Callable[[], float]) -> None:
        self.waiting.append(work)

    @contextlib.contextmanager
    def aside(self, device: torch.device) -> Iterator[Stopwatch]:
        def seconds(work: Work) -> float:
            before = self.clock[0]
            work()
            return self.clock[0] - before

        yield seconds

    def work(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class Scaling:
    """c x, with a kernel that does as it is told; ``calls`` counts what ran."""

    def __init__(self, bench: PretendedWorkbench, speed_up: float = 2.0) -> None:
        self.calls = {"torch": 0, "kernel": 0}
        self.loaded = 0
        self._bench, self._speed_up = bench, speed_up
        self.operation = Operation("scaling", self.by_torch, self.load, torch.equal)

    def load(self) -> Implementation:
        self.loaded += 1
        return self.kernel

    def by_torch(self, tensors: Any, c: float) -> Tensor:
        self.calls["torch"] += 1
        self._bench.clock[0] += 1.0
        return tensors[0] * c

    def kernel(self, tensors: Any, c: float) -> Tensor:
        self.calls["kernel"] += 1
        self._bench.clock[0] += 1.0 / self._speed_up
        return self.result(tensors[0] * c)

    def result(self, right: Tensor) -> Tensor:
        return right


@pytest.fixture
def bench() -> PretendedWorkbench:
    return PretendedWorkbench()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, CONCLUSIVE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "dizzydiff")
    return caplog


def used(scaling: Scaling, dispatcher: Dispatcher, x: Tensor) -> str:
    """Which implementation one call ran; its result must be right."""
    before = dict(scaling.calls)
    assert torch.equal(dispatcher(scaling.operation, [x], 3.0), 3.0 * x)
    return "+".join(name for name, calls in scaling.calls.items() if calls > before[name])


def test_a_good_kernel_is_used_after_its_trial(
    bench: PretendedWorkbench, x: Tensor, heard: pytest.LogCaptureFixture
) -> None:
    scaling, dispatcher = Scaling(bench), Dispatcher(bench)
    assert used(scaling, dispatcher, x) == "torch"
    assert scaling.loaded == 0, "nothing is imported while the picture waits"
    bench.work()
    assert [used(scaling, dispatcher, x) for _ in range(3)] == ["kernel"] * 3
    (line,) = heard.messages
    assert "scaling" in line and "Triton" in line and "(2, 1024)" in line and "cpu" in line


def test_a_good_kernel_is_used_on_the_pretended_device(bench: PretendedWorkbench, x: Tensor) -> None:
    scaling, dispatcher = Scaling(bench), Dispatcher(bench)
    with booked(float64=False), pytest.MonkeyPatch.context() as patch:
        device = types.SimpleNamespace(device=lambda device: contextlib.nullcontext())
        patch.setattr(torch, "get_device_module", lambda of: device)
        away = Away(x)
        assert used(scaling, dispatcher, away) == "torch"
        bench.work()
        assert used(scaling, dispatcher, away) == "kernel"


class Raising(Scaling):
    def kernel(self, tensors: Any, c: float) -> Tensor:
        raise RuntimeError(
            "Failed to find C compiler. Please specify via CC environment variable.\nAt length"
        )


class WithoutTriton(Scaling):
    def load(self) -> Implementation:
        raise ModuleNotFoundError("No module named 'triton'")


class LastBit(Scaling):
    """Wrong in one bit of one number."""

    def result(self, right: Tensor) -> Tensor:
        right = right.clone()
        right[0, 5] = torch.nextafter(right[0, 5], torch.tensor(torch.inf))
        return right


class Elsewhere(Scaling):
    """Right where all numbers are small integers, as by a sum in another order."""

    def result(self, right: Tensor) -> Tensor:
        return right if torch.equal(right, right.round()) else right * 1.000001


@pytest.mark.parametrize(
    ("kind", "speed_up", "reason"),
    [
        (LastBit, 2.0, "differs"),
        (Elsewhere, 2.0, "differs"),
        (Scaling, 1.19, "takes"),
        (Scaling, 0.1, "takes"),
        (Raising, 2.0, "C compiler"),
        (WithoutTriton, 2.0, "No module named 'triton'"),
    ],
)
def test_a_bad_kernel_leaves_the_work_to_pytorch_and_one_line_says_why(
    kind: type[Scaling],
    speed_up: float,
    reason: str,
    bench: PretendedWorkbench,
    heard: pytest.LogCaptureFixture,
) -> None:
    scaling, dispatcher, x = kind(bench, speed_up), Dispatcher(bench), torch.ones(1, CONCLUSIVE)
    for _ in range(3):
        assert used(scaling, dispatcher, x) == "torch"
        bench.work()
    assert not bench.waiting and len(heard.messages) == 1
    assert "PyTorch" in heard.messages[0] and reason in heard.messages[0]
    assert "At length" not in heard.messages[0]


def test_a_kernel_exactly_as_fast_as_is_asked_is_kept(bench: PretendedWorkbench, x: Tensor) -> None:
    scaling, dispatcher = Scaling(bench, 1.21), Dispatcher(bench)
    used(scaling, dispatcher, x)
    bench.work()
    assert used(scaling, dispatcher, x) == "kernel"
    assert scaling.calls["kernel"] >= LAUNCHES


def test_a_kernel_that_breaks_later_is_never_launched_again(
    bench: PretendedWorkbench, x: Tensor, heard: pytest.LogCaptureFixture
) -> None:
    scaling, dispatcher = Scaling(bench), Dispatcher(bench)
    used(scaling, dispatcher, x)
    bench.work()

    def lost(right: Tensor) -> Tensor:
        raise RuntimeError("device lost")

    scaling.result = lost  # type: ignore[method-assign]
    assert used(scaling, dispatcher, x) == "torch+kernel", "the call that breaks is answered"
    for shape in (x.shape, (3, CONCLUSIVE)):
        assert used(scaling, dispatcher, torch.ones(shape)) == "torch"
    assert not bench.waiting
    assert "PyTorch" in heard.messages[-1] and "device lost" in heard.messages[-1]


def test_every_shape_is_tried_one_at_a_time(bench: PretendedWorkbench, x: Tensor) -> None:
    scaling, dispatcher = Scaling(bench), Dispatcher(bench)
    wide = torch.ones(2, 2 * CONCLUSIVE)
    used(scaling, dispatcher, x)
    used(scaling, dispatcher, wide)
    assert len(bench.waiting) == 1, "copies of one call at a time"
    bench.work()
    assert (used(scaling, dispatcher, x), used(scaling, dispatcher, wide)) == ("kernel", "torch")
    bench.work()
    assert used(scaling, dispatcher, wide) == "kernel"


def test_what_is_computed_otherwise_is_tried_by_itself(x: Tensor) -> None:
    known = shapes([x, x], [[1.0, 2.0]])
    assert shapes([x, x], [[3.0, 4.0]]) == known
    for tensors, weights in (([x, x], [[1.0, 2.0]] * 2), ([x], [[1.0]]), ([x[0], x[1]], [[1.0, 2.0]])):
        assert shapes(tensors, weights) != known


def test_the_trial_is_made_on_copies(bench: PretendedWorkbench, x: Tensor) -> None:
    scaling, dispatcher = Scaling(bench), Dispatcher(bench)
    used(scaling, dispatcher, x)
    seen: list[Tensor] = []

    def remember(right: Tensor) -> Tensor:
        seen.append(right)
        return right

    scaling.result = remember  # type: ignore[method-assign]
    before = x.clone()
    x.zero_()
    bench.work()
    assert torch.equal(seen[0], 3.0 * before)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_a_trial_that_cannot_begin_harms_nothing(
    stop: type[BaseException], bench: PretendedWorkbench, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling, dispatcher = Scaling(bench), Dispatcher(bench)

    def fail(work: Work, last_call: Callable[[], float]) -> None:
        raise stop("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(bench, "later", fail)
        if issubclass(stop, Exception):
            assert used(scaling, dispatcher, x) == "torch"
        else:
            with pytest.raises(stop):
                dispatcher(scaling.operation, [x], 3.0)
    assert used(scaling, dispatcher, x) == "torch"
    bench.work()
    assert used(scaling, dispatcher, x) == ("torch" if issubclass(stop, Exception) else "kernel")


def test_a_trial_that_is_interrupted_can_be_made_again(bench: PretendedWorkbench, x: Tensor) -> None:
    scaling, dispatcher = Scaling(bench), Dispatcher(bench)
    right = scaling.result

    def interrupted(right: Tensor) -> Tensor:
        raise KeyboardInterrupt

    scaling.result = interrupted  # type: ignore[method-assign]
    used(scaling, dispatcher, x)
    with pytest.raises(KeyboardInterrupt):
        bench.work()
    scaling.result = right  # type: ignore[method-assign]
    used(scaling, dispatcher, x)
    bench.work()
    assert used(scaling, dispatcher, x) == "kernel"


def test_many_threads_try_once_and_all_get_their_results(bench: PretendedWorkbench, x: Tensor) -> None:
    scaling, dispatcher, wrong = Scaling(bench), Dispatcher(bench), []
    barrier = threading.Barrier(8)

    def ask() -> None:
        for n in range(50):
            if n == 25 and barrier.wait() == 0:
                bench.work()
            if not torch.equal(dispatcher(scaling.operation, [x], 3.0), 3.0 * x):
                wrong.append(n)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert scaling.loaded == 1
    assert used(scaling, dispatcher, x) == "kernel"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, CONCLUSIVE, dtype=torch.float16),
        torch.ones(2, CONCLUSIVE, dtype=torch.float64),
        torch.ones(2, CONCLUSIVE, requires_grad=True),
        torch.ones(2 * CONCLUSIVE)[1:],
        torch.ones(CONCLUSIVE - 1),
        torch.ones(0),
    ],
    ids=["half precision", "float64", "gradient", "not aligned", "too few to tell", "empty"],
)
def test_what_a_kernel_is_not_made_for_is_not_tried(tensor: Tensor, bench: PretendedWorkbench) -> None:
    scaling, dispatcher = Scaling(bench), Dispatcher(bench)
    assert used(scaling, dispatcher, tensor) == "torch"
    assert not bench.waiting


def test_hosts_and_unknown_devices_are_not_tried() -> None:
    assert not SideStream().has_kernels(torch.device("cpu"))
    assert not SideStream().has_kernels(DEVICE)
    assert not SideStream().has_kernels(torch.device("meta"))
    assert SideStream().has_kernels(torch.device("cuda"))
    with current(torch.device("cpu")):
        pass


def test_a_trial_waits_for_a_quiet_moment() -> None:
    """Asked for a moment ago, twice; then not for long."""
    asked, done = [], threading.Event()

    def last_call() -> float:
        asked.append(threading.current_thread())
        return time.monotonic() if len(asked) <= 2 else 0.0

    SideStream().later(done.set, last_call)
    assert done.wait(60)
    assert len(asked) == 3 and asked[0] is not threading.main_thread() and asked[0].daemon


class DeviceModule:
    """What torch.cuda is to CUDA, for the pretended device: writes down what it is asked to do."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in ("device", "stream", "synchronize", "Stream", "Event"):
            raise AttributeError(name)
        return lambda *arguments, **options: self._do(name)

    def _do(self, name: str) -> Any:
        self.done.append(name)
        made = contextlib.nullcontext()
        made.synchronize = lambda: self.done.append(f"{name}.synchronize")  # type: ignore[attr-defined]
        made.record = lambda stream: self.done.append("record")  # type: ignore[attr-defined]
        made.elapsed_time = lambda end: 250.0  # type: ignore[attr-defined]
        return made


def test_work_is_timed_by_events_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    device = DeviceModule()
    monkeypatch.setattr(torch, DEVICE.type, device, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda of: device)
    assert SideStream().has_kernels(DEVICE)
    with SideStream().aside(DEVICE) as seconds:
        assert seconds(lambda: device.done.append("work")) == 0.25
    assert device.done == [
        *("device", "synchronize", "Stream", "stream"),
        *("Event", "Event", "record", "work", "record", "Event.synchronize"),
        "Stream.synchronize",
    ]


def both(x: Tensor, dispatcher: Dispatcher) -> list[Tensor]:
    """Either operation, with coefficients whose products are exact, so that only roundings of sums count."""
    return [
        *carry(x[None], x.flip(0), 0.3 * x, -0.5, dispatcher),
        linear_combinations([[0.5, 2.0], [-4.0, 1.0]], [x, x.flip(0)], dispatcher),
    ]


@dataclass
class FastKernels(PretendedWorkbench):
    """On which every kernel takes half of PyTorch's time."""

    @contextlib.contextmanager
    def aside(self, device: torch.device) -> Iterator[Stopwatch]:
        times = iter([1.0, 2.0] * 100)
        yield lambda work: next(times)


def test_where_there_is_no_gpu_the_kernels_raise_and_pytorch_goes_on(
    x: Tensor, heard: pytest.LogCaptureFixture
) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter needs no GPU")
    bench, expected = FastKernels(), both(x, Dispatcher())
    dispatcher = Dispatcher(bench)
    for _ in range(4):
        assert all(map(torch.equal, both(x, dispatcher), expected))
        bench.work()
    assert len(heard.messages) == 2 and all("raised" in line for line in heard.messages)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton.py")
def test_triton_kernels_qualify_and_change_no_bit(x: Tensor, heard: pytest.LogCaptureFixture) -> None:
    bench, expected = FastKernels(), both(x, Dispatcher())
    dispatcher = Dispatcher(bench)
    for _ in range(4):
        carried, norm, sums = both(x, dispatcher)
        assert torch.equal(carried, expected[0]) and torch.equal(sums, expected[2])
        torch.testing.assert_close(norm, expected[1], rtol=1e-5, atol=0)
        bench.work()
    assert len(heard.messages) == 2 and all("done by the Triton kernel" in line for line in heard.messages)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton.py")
def test_triton_kernels_change_no_bit_where_they_round_otherwise(x: Tensor) -> None:
    """The interpreter rounds c (x - x~) before it adds, PyTorch on most processors only after; a long sum may
    be in another order.
    """
    bench = FastKernels()
    dispatcher = Dispatcher(bench)
    weights, tensors = torch.randn(2, 40).tolist(), [x.roll(shift) for shift in range(40)]
    bits = carry(x[None], x.flip(0), 0.3 * x, -0.7)[0], linear_combinations(weights, tensors)
    for _ in range(3):
        carried = carry(x[None], x.flip(0), 0.3 * x, -0.7, dispatcher)[0]
        sums = linear_combinations(weights, tensors, dispatcher)
        assert torch.equal(carried, bits[0]) and torch.equal(sums, bits[1])
        bench.work()
