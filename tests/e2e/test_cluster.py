# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft Cluster as a user meets it: a real ComfyUI, a real Ray, two workers on the CPU of this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from devtools import comfyui, server
from devtools.server import Server

from .test_server import error_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed; `pip install -r requirements-dev.txt`",
)
TOLERANCE = 0.01
WORKERS = ["local:cpu", "local:cpu#2"]
Graph = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ray_here() -> None:
    """A Ray of nobody's starts on this machine."""
    alone = "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False); ray.shutdown()"
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    tried = subprocess.run(
        [sys.executable, "-c", alone], capture_output=True, encoding="utf-8", timeout=300, env=quiet
    )
    if tried.returncode:
        pytest.skip(f"Ray itself does not start on this machine: {tried.stderr[-300:]}")


@pytest.fixture(scope="module")
def comfy(root: Path, tmp_path_factory: pytest.TempPathFactory, ray_here: None) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cluster")
    base = comfyui.make_base(root, folder / "base")
    faults = Path(__file__).with_name("cluster_faults")
    (base / "custom_nodes" / "cluster_faults").symlink_to(faults, target_is_directory=True)
    tree = comfyui.locate(root).path
    with server.running(
        Path(sys.executable), tree, base, folder / "output", folder / "comfyui.log"
    ) as running:
        yield running


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def cluster(**given: Any) -> dict[str, Any]:
    told = {"model": ["source", 0], "address": "local", "workers": 2, "devices": "cpu"}
    return node("DizzyDiffCluster", **{**told, "predictions_per_round": 0, **given})


def of_threads(prompt: Graph) -> Graph:
    """The same picture from as many threads of one process as there are workers, and one more."""
    model = prompt["where"]["inputs"]["model"]
    return prompt | {"where": node("DizzyDiffDevices", model=model, devices="cpu, cpu:1, cpu:2")}


def graph(where: dict[str, Any], **given: Any) -> Graph:
    """A picture of the embedded teacher in 12 steps, on devices of equal speed. given: inputs of the sampler;
    source: what patches the MODEL; latent.
    """
    source = given.pop("source", node("EqualDevices", model=["loader", 0]))
    latent = given.pop("latent", node("EmptyLatentImage", width=96, height=96, batch_size=1))
    sampling = {
        "model": ["where", 0], "positive": ["positive", 0], "negative": ["negative", 0],
        "latent_image": ["latent", 0], "seed": 1, "steps": 12, "cfg": 2.0, "sampler_name": "euler",
        "scheduler": "karras", "denoise": 1.0, "mode": "verified", "tolerance": TOLERANCE,
    }  # fmt: skip
    return {
        "loader": node("DizzyDiffLoadPipeline", pipeline="tiny/teacher"),
        "source": source,
        "where": where,
        "positive": node("CLIPTextEncode", clip=["loader", 1], text="a large red circle on white"),
        "negative": node("CLIPTextEncode", clip=["loader", 1], text=""),
        "latent": latent,
        "sampler": node("DizzyDiffDraftRefineKSampler", **{**sampling, **given}),
        "saved": node("SaveLatent", samples=["sampler", 0], filename_prefix="cluster"),
        "shown": node("PreviewAny", source=["sampler", 2]),
    }


def drawn(comfy: Server, prompt: Graph) -> tuple[Tensor, str, dict[str, Any]]:
    """The latent, what the sampler said, and its numbers."""
    entry = comfy.run(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (file,) = entry["outputs"]["saved"]["latents"]
    latent = load_file(comfy.output / file["subfolder"] / file["filename"])["latent_tensor"]
    said = entry["outputs"].get("sampler", {})
    return latent, " ".join(said.get("text", [])), (said.get("draft_refine") or [{}])[0]


def off(result: Tensor, reference: Tensor) -> float:
    return float((result - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def faulty(comfy: Server, fault: str, armed: Path) -> dict[str, Any]:
    return node("FaultInWorkers", model=["loader", 0], fault=fault, armed=str(armed), main=comfy.process.pid)


def processes(comfy: Server) -> list[psutil.Process]:
    """All that ComfyUI has started, and what that has."""
    return psutil.Process(comfy.process.pid).children(recursive=True)


MASKED = {
    "image": node("EmptyImage", width=96, height=96, batch_size=1, color=0xC08040),
    "mask": node("SolidMask", value=0.5, width=96, height=96),
    "encoded": node("VAEEncode", pixels=["image", 0], vae=["loader", 2]),
    "latent": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0]),
}
SECOND = {
    "first": node(
        "KSampler", model=["loader", 0], positive=["positive", 0], negative=["negative", 0],
        latent_image=["empty", 0], seed=5, steps=2, cfg=1.0, sampler_name="euler", scheduler="karras",
        denoise=1.0,
    ),
    "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "latent": node("LatentUpscale", samples=["first", 0], upscale_method="bilinear", width=96, height=96,
                   crop="disabled"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "more"),
    [
        ({}, {}),
        ({"seed": 2, "cfg": 1.0}, {}),
        ({"sampler_name": "euler_ancestral"}, {}),
        ({"sampler_name": "euler_cfg_pp", "cfg": 1.0}, {}),
        ({"sampler_name": "heun", "steps": 6}, {}),
        ({"denoise": 0.7}, MASKED),
        ({"denoise": 0.6}, SECOND),
    ],
    ids=["euler", "one pass", "stochastic", "reads uncond", "two calls a step", "a mask", "a second pass"],
)
def test_the_picture_is_that_of_threads_bit_for_bit(
    changed: dict[str, Any], more: Graph, comfy: Server
) -> None:
    prompt = graph(cluster(), **changed) | more
    of_cluster, said, numbers = drawn(comfy, prompt)
    expected, _, _ = drawn(comfy, of_threads(prompt))
    assert f"on cpu, {', '.join(WORKERS)}, " in said
    assert torch.equal(of_cluster, expected)
    assert numbers["rounds"] < numbers["calls"]


def test_video_with_sound_is_that_of_threads_bit_for_bit(comfy: Server) -> None:
    """A latent of two parts, of which a frame is kept: the network is told which."""
    video = {
        "video": node("VideoWithSound"),
        "source": node("EqualDevices", model=["video", 0]),
        "parts": node("LTXVSeparateAVLatent", av_latent=["sampler", 0]),
        "saved": node("SaveLatent", samples=["parts", 0], filename_prefix="video"),
        "sound": node("SaveLatent", samples=["parts", 1], filename_prefix="sound"),
    }
    of_video = {"positive": ["video", 1], "negative": ["video", 1], "latent_image": ["video", 2]}
    prompt = graph(cluster(), cfg=1.0, scheduler="simple", **of_video) | video
    of_cluster, said, _ = drawn(comfy, prompt)
    expected, _, _ = drawn(comfy, of_threads(prompt))
    assert f"on cpu, {', '.join(WORKERS)}, " in said
    assert torch.equal(of_cluster, expected)


def test_an_image_that_only_the_main_machine_has_travels(comfy: Server) -> None:
    """Workers of these tests have an input folder of their own, and it is empty. Nothing stays there."""
    image = Image.linear_gradient("L").resize((96, 96))
    image.convert("RGB").save(comfy.base / "input" / "only here.png")
    masked = {
        "image": node("LoadImageMask", image="only here.png", channel="red"),
        "more": node("CLIPTextEncode", clip=["loader", 1], text="a small blue square on white"),
        "region": node("ConditioningSetMask", conditioning=["more", 0], mask=["image", 0], strength=1.0,
                       set_cond_area="default"),
        "both": node("ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["region", 0]),
    }  # fmt: skip
    prompt = graph(cluster(), positive=["both", 0], seed=12) | masked
    of_cluster, said, _ = drawn(comfy, prompt)
    expected, _, _ = drawn(comfy, of_threads(prompt))
    everywhere, _, _ = drawn(comfy, graph(cluster(), seed=12))
    assert f"on cpu, {', '.join(WORKERS)}, " in said
    assert torch.equal(of_cluster, expected) and off(everywhere, expected) > TOLERANCE
    assert not list((comfy.base / "temp").glob("dizzydiff_*"))


@pytest.mark.parametrize("asked", [{"unload_models": True}, {"free_memory": True}])
def test_workers_unload_their_models_where_comfyui_does(
    asked: dict[str, bool], comfy: Server, tmp_path: Path
) -> None:
    file, main = tmp_path / "unloaded", str(comfy.process.pid)
    file.touch()
    source = node("TellOfUnloading", model=["loader", 0], file=str(file))
    for seed in (13, 14):
        drawn(comfy, graph(cluster(), source=source, seed=seed))
        before = len(file.read_text(encoding="utf-8").split())
        comfy.request("/free", asked)
        end = time.monotonic() + 60
        while len({*file.read_text(encoding="utf-8").split()[before:]} - {main}) < len(WORKERS):
            assert time.monotonic() < end
            time.sleep(0.01)


def test_another_model_is_another_model_there_too(comfy: Server) -> None:
    """The workers follow the graph: a patch, then none, then the patch again."""
    patch = node("ModelSamplingDiscrete", model=["loader", 0], sampling="lcm", zsnr=False)
    pictures = [
        drawn(comfy, graph(cluster(), seed=seed, **({"source": patch} if patched else {})))
        for seed, patched in ((3, True), (3, False), (4, True))
    ]
    for _, said, _ in pictures:
        assert ", ".join(WORKERS) in said
    assert off(pictures[0][0], pictures[1][0]) > TOLERANCE


def test_draft_cluster_behind_draft_cluster_is_one(comfy: Server) -> None:
    _, said, _ = drawn(comfy, graph(cluster(), source=cluster(model=["loader", 0]), seed=11))
    assert ", ".join(WORKERS) in said


def test_a_worker_killed_in_the_middle_leaves_a_finished_picture_and_comes_back(
    comfy: Server, tmp_path: Path
) -> None:
    armed = tmp_path / "kill"
    source = faulty(comfy, "kill", armed)
    whole, _, _ = drawn(comfy, graph(cluster(), source=source, seed=21, width=1))
    armed.touch()
    finished, said, _ = drawn(comfy, graph(cluster(), source=source, seed=21))
    assert not armed.exists()
    assert said.count("was lost") == 1 and "left out for the rest of this image" in said
    assert off(finished, whole) < TOLERANCE
    _, said, _ = drawn(comfy, graph(cluster(), source=source, seed=22))
    assert sorted(WORKERS) == sorted(each for each in WORKERS if each in said)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("fail", "failed (RuntimeError: out of luck)"), ("otherwise", "predicts otherwise")],
)
def test_workers_that_fail_or_predict_otherwise_are_left_out(
    fault: str, sentence: str, comfy: Server, tmp_path: Path
) -> None:
    armed = tmp_path / fault
    armed.touch()
    source = faulty(comfy, fault, armed)
    left, said, _ = drawn(comfy, graph(cluster(), source=source, seed=31))
    armed.unlink()
    whole, _, _ = drawn(comfy, graph(cluster(), source=source, seed=31, width=1))
    for worker in WORKERS:
        assert f"{worker} {sentence.partition(' ')[0]}" in said
    assert said.count(sentence) == 2
    assert off(left, whole) < TOLERANCE


def test_an_interrupted_picture_is_given_up_and_the_next_one_is_drawn(comfy: Server, tmp_path: Path) -> None:
    armed = tmp_path / "hang"
    armed.touch()
    source = faulty(comfy, "hang", armed)
    prompt = comfy.request("/prompt", {"prompt": graph(cluster(), source=source, seed=41)})["prompt_id"]
    while not armed.with_suffix(".hangs").exists():
        assert not comfy.request(f"/history/{prompt}")
        time.sleep(0.01)
    comfy.request("/interrupt", {})
    entry = comfy.finished(prompt)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
    armed.unlink()
    _, said, _ = drawn(comfy, graph(cluster(), source=source, seed=42))
    assert ", ".join(WORKERS) in said


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("OnlyHere", "gone.safetensors is not there"),
        ("OnlyInstalledHere", "not installed there: OnlyInstalled"),
    ],
)
def test_what_is_missing_there_is_named(kind: str, sentence: str, comfy: Server) -> None:
    source = node(kind, model=["loader", 0], file="gone.safetensors", main=comfy.process.pid)
    _, said, _ = drawn(comfy, graph(cluster(), source=source, seed=51))
    for worker in WORKERS:
        assert f"the worker {worker} failed" in said
    assert sentence in said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"address": "127.0.0.1:1"}, "No Ray cluster could be used at '127.0.0.1:1'"),
        ({"devices": "toaster"}, "'toaster' in 'toaster' is no device"),
        ({"devices": "auto", "workers": 0}, "Set workers to a number"),
    ],
)
def test_what_cannot_be_used_is_said_at_the_node(given: dict[str, Any], sentence: str, comfy: Server) -> None:
    error = error_of(comfy.run(graph(cluster(**given), seed=61)))
    assert error["node_id"] == "where" and sentence in error["exception_message"]
    _, said, _ = drawn(comfy, graph(cluster(), seed=62 + len(sentence)))
    assert ", ".join(WORKERS) in said


def test_a_ray_that_is_gone_is_started_again(comfy: Server) -> None:
    (head,) = [each for each in processes(comfy) if "head.py" in " ".join(each.cmdline())]
    serving = [each for each in head.children(recursive=True) if each.name() in ("raylet", "gcs_server")]
    assert serving
    head.kill()
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in serving):
        time.sleep(0.01)
    _, said, _ = drawn(comfy, graph(cluster(), seed=71))
    assert ", ".join(WORKERS) in said


def test_everything_listens_on_loopback_alone(comfy: Server) -> None:
    listening = [
        connection.laddr.ip
        for process in [psutil.Process(comfy.process.pid), *processes(comfy)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}


def test_nothing_is_left_of_a_killed_comfyui(comfy: Server) -> None:
    """Last: it ends the server of this file."""
    started = processes(comfy)
    assert started
    comfy.process.kill()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
