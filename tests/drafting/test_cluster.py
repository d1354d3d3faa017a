# SPDX-License-Identifier: GPL-3.0-or-later
"""What Draft Cluster needs no ComfyUI and no Ray for: addresses, graphs, what travels, who waits for whom."""

from __future__ import annotations

import gc
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dizzydiff.drafting.cluster.connection import Head, check_address, connect, import_ray, knock
from dizzydiff.drafting.cluster.graph import STAND_IN, upstream
from dizzydiff.drafting.cluster.session import NotThere, Session, Stopped
from dizzydiff.drafting.cluster.wire import packed, unpacked
from dizzydiff.drafting.errors import NoCluster, NoRay


@pytest.mark.parametrize(
    "address", ["local", " AUTO ", "192.168.1.10:6379", "box-2.lan:6379", "[fe80::1]:6379"]
)
def test_addresses_are_taken(address: str) -> None:
    assert check_address(address) in (address.strip(), address.strip().lower())


@pytest.mark.parametrize(
    "address", ["", "6379", "box", "box:", "box:0", "box:70000", "ray://box:10001", "a b:1"]
)
def test_what_is_no_address_is_refused_with_what_one_is(address: str) -> None:
    with pytest.raises(NoCluster, match=r'Expected "local", "auto", or the address of a Ray head'):
        check_address(address)


def test_without_ray_a_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NoRay, match="python -m pip install ray"):
        import_ray()
    with pytest.raises(NoRay):
        connect("auto", None)


def test_an_address_where_nobody_is_is_told_at_once() -> None:
    with pytest.raises(NoCluster, match=r"127\.0\.0\.1:1"):
        knock("127.0.0.1:1")
    knock("local")


RAY = """
import types
def init(**told): {init}
def nodes(): return [{{"NodeManagerAddress": "{address}"}}]
def get_runtime_context(): return types.SimpleNamespace(gcs_address="127.0.0.1:4321")
def shutdown(): pass
"""


@pytest.fixture
def pretend_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the program that starts Ray another one, which starts nothing."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))

    def write(init: str = "pass", address: str = "127.0.0.1") -> None:
        (tmp_path / "ray.py").write_text(RAY.format(init=init, address=address), encoding="utf-8")

    return write


def test_a_ray_of_this_machine_ends_with_what_holds_it(pretend_ray: Callable[..., None]) -> None:
    pretend_ray()
    head = Head(1, lambda: None)
    folder, ends = Path(head.folder), time.monotonic() + 60
    assert head.address == "127.0.0.1:4321" and head.lives and folder.is_dir()
    del head
    gc.collect()
    while folder.exists():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"init": "raise RuntimeError('no room')"}, "RuntimeError: no room"),
        ({"address": "192.168.1.10"}, "Ray listens beyond this machine"),
    ],
)
def test_a_ray_that_does_not_start_or_listens_beyond_this_machine_is_not_used(
    told: dict[str, str], sentence: str, pretend_ray: Callable[..., None]
) -> None:
    pretend_ray(**told)
    with pytest.raises(NoCluster, match=sentence):
        Head(1, lambda: None)


PROMPT: dict[str, dict[str, Any]] = {
    "1": {"class_type": "Loader", "inputs": {"name": "a"}},
    "2": {"class_type": "Prompt", "inputs": {"clip": ["1", 1], "text": "x"}, "is_changed": [1.0]},
    "3": {"class_type": "Load Image", "inputs": {"image": "a.png"}},
    "4": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "positive": ["2", 0], "latent": ["3", 0]}},
    "5": {"class_type": "Decode", "inputs": {"samples": ["4", 0]}},
}


def test_a_worker_gets_what_the_sampler_needs_and_a_place_for_its_latent() -> None:
    graph = upstream(PROMPT.__getitem__, "4", latents=["latent"], run="r")
    assert graph.keys() == {"1", "2", "4", "4.latent"}
    assert graph["4.latent"] == {"class_type": STAND_IN, "inputs": {"run": "r"}}
    assert graph["4"]["inputs"]["latent"] == ["4.latent", 0]
    assert graph["2"] == PROMPT["2"]
    assert PROMPT["4"]["inputs"]["latent"] == ["3", 0]


def test_every_run_of_a_sampler_is_another_for_the_cache_of_a_worker() -> None:
    one, other = (upstream(PROMPT.__getitem__, "4", latents=[], run=run) for run in "ab")
    assert one["4"] != other["4"]
    assert {name: node for name, node in one.items() if name != "4"} == {
        name: node for name, node in other.items() if name != "4"
    }


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_tensors_travel_bit_for_bit(shape: list[int], dtype: torch.dtype, seed: int) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    back = unpacked(packed(tensor.transpose(0, -1)))
    assert back.dtype == dtype and torch.equal(back, tensor.transpose(0, -1))


class Sampler(threading.Thread):
    """A graph's thread that comes to its sampler so many times."""

    def __init__(self, session: Session, visits: int = 1) -> None:
        super().__init__(daemon=True)
        self.session, self.visits = session, visits
        self.results: list[Tensor] = []
        self.stopped = False

    def run(self) -> None:
        try:
            for visit in range(self.visits):
                self.results.append(self.session.serve(visit, {"visit": visit}))
        except Stopped:
            self.stopped = True
        finally:
            self.session.end("")


def visit_of(model: Any, extra_args: dict[str, Any]) -> list[Any]:
    return [model, extra_args["visit"], threading.current_thread()]


def test_a_sampler_answers_in_its_own_thread_and_returns_what_was_made_elsewhere() -> None:
    session = Session("r")
    sampler = Sampler(session, visits=2)
    sampler.start()
    assert session.ask(0, visit_of) == [0, 0, sampler]
    session.finish(torch.ones(1))
    assert session.ask(1, visit_of) == [1, 1, sampler]
    session.finish(torch.zeros(1))
    sampler.join(30)
    assert [float(each) for each in sampler.results] == [1.0, 0.0]


def test_an_error_of_a_prediction_reaches_who_asked_and_the_sampler_goes_on() -> None:
    session = Session("r")
    Sampler(session).start()

    def fail(model: Any, extra_args: dict[str, Any]) -> list[Any]:
        raise ValueError("bad state")

    with pytest.raises(ValueError, match="bad state"):
        session.ask(0, fail)
    assert session.ask(0, visit_of)[:2] == [0, 0]
    session.stop()


def test_a_stopped_sampler_ends_and_nobody_waits_for_it() -> None:
    session = Session("r")
    sampler = Sampler(session)
    sampler.start()
    session.ask(0, visit_of)
    session.stop()
    sampler.join(30)
    assert sampler.stopped
    with pytest.raises(NotThere):
        session.ask(0, visit_of)


def test_a_graph_that_never_comes_to_its_sampler_says_why() -> None:
    session = Session("r")
    session.end("LoadCheckpoint: no such file")
    with pytest.raises(NotThere, match="no such file"):
        session.ask(0, visit_of)
