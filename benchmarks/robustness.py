# SPDX-License-Identifier: GPL-3.0-or-later
"""Random prompts against a real server: valid ones run, invalid ones are refused by name, interruptions leave
it as it was.

Bars: the server never dies; every valid prompt succeeds; every invalid one gets an error that names its
input; memory after equals memory before within 5 %. Prompts are drawn by hypothesis from what /object_info
says of the pack's nodes.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ..devtools import comfyui
from ..devtools.server import Server, running

ROOT = Path(__file__).resolve().parents[1]
Graph = dict[str, dict[str, Any]]
Info = Mapping[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

CHEAP = {
    "steps": (1, 4),
    "levels": (8, 10),
    "probes": (1, 2),
    "batch_size": (1, 2),
    "denoise": (0.25, 1.0),
    "seed": (0, 2**64 - 2),
}
"""Ranges that keep one prompt short, inside those of the nodes. Some of core's samplers add 1 to the largest
seed, and fail.
"""
CHOSEN: Mapping[str, Mapping[str, list[Any]]] = {
    "EmptyLatentImage": {"width": [64, 70], "height": [64]},
    "EmptyImage": {"width": [64], "height": [48], "batch_size": [1]},
    "CLIPTextEncode": {"text": ["a red circle on white", ""]},
    "DizzyDiffLoadPipeline": {"pipeline": ["tiny", "tiny/teacher"]},
    "DizzyDiffLoadStudent": {"student": ["tiny"], "weight_dtype": ["default", "fp16"]},
    "DizzyDiffGuidanceSweep": {"scales": ["1", "1, 2.5", "3;4 5"]},
    "DizzyDiffGuidanceSchedule": {"schedule": ["0: 1", "0: 1, 0.3: 4.5; 1: 2"]},
    "DizzyDiffDevices": {"devices": ["auto", "batch", "cpu, cpu:1"]},
    "DizzyDiffStabilityProfile": {"measure_again": [False]},
    "DizzyDiffStabilitySampler": {"cfg": [1.0], "measure_again": [False]},
    "DizzyDiffCompareSigmas": {"names": ["", "one, two"]},
}
"""Values where not every one of the socket's type is valid, or each new one costs hundreds of model calls."""
NEEDED = dict.fromkeys(
    ("DizzyDiffStabilityProfile", "DizzyDiffStabilitySampler"), ("model", "positive", "negative")
)
"""Optional inputs that stand for one another (a guider for these), of which a graph has to link some."""
UNREADABLE = {
    "scales": ["", "1, two", "nan", "-1", "101"],
    "schedule": ["", "4", "0: 1, 0: 2", "0.5: 101", "2: 1"],
    "devices": ["", "cuda:77", "gpu", "cpu,,cpu"],
}
GROWING = "COMFY_AUTOGROW_V3"
"""An input that becomes several."""
ENDLESS = "dpm_adaptive"
"""A sampler that takes as many steps as it likes."""
APART = ("DizzyDiffDistillGuidance", "DizzyDiffExportLoRA", "DizzyDiffCluster", "DizzyDiffStepsNeeded")
"""The node that trains for hours, the one that needs what it made, the one that starts processes by Ray, and
the one that makes 14 grids: they have tests of their own.
"""
SOURCES: Mapping[str, list[tuple[str, int]]] = {
    "MODEL": [
        ("DizzyDiffLoadPipeline", 0),
        ("DizzyDiffLoadStudent", 0),
        ("DizzyDiffDevices", 0),
        ("DizzyDiffWatchStability", 0),
    ],
    "CLIP": [("DizzyDiffLoadPipeline", 1)],
    "CONDITIONING": [("CLIPTextEncode", 0), ("DizzyDiffStudentGuidance", 0), ("ConditioningZeroOut", 0)],
    "LATENT": [("EmptyLatentImage", 0), ("DizzyDiffGuidanceSweep", 1), ("DizzyDiffDraftRefineKSampler", 0)],
    "SAMPLER": [
        ("KSamplerSelect", 0),
        ("DizzyDiffStudentSampler", 0),
        ("DizzyDiffDraftRefine", 0),
        ("DizzyDiffPoissonNoise", 1),
    ],
    "SIGMAS": [("BasicScheduler", 0), ("DizzyDiffStabilityGrid", 0)],
    "STABILITY_PROFILE": [("DizzyDiffStabilityProfile", 0)],
    "IMAGE,LATENT": [("EmptyImage", 0)],
}
"""Outputs that can stand for each type; the first is the plainest."""
SINKS = {"SAMPLER": "SamplerCustom", "SIGMAS": "SamplerCustom", "MODEL": "KSampler"}
"""Nodes that use what would otherwise only be made."""


@dataclass
class Outcome:
    """What a run of many prompts showed."""

    prompts: int = 0
    succeeded: int = 0
    interrupted: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    def row(self, name: str) -> dict[str, Any]:
        return {
            "attack": name,
            "prompts": self.prompts,
            "as it should": self.succeeded,
            "interrupted": self.interrupted,
            "seconds": self.seconds,
            "failures": dict(self.failures),
        }


def described(server: Server) -> Info:
    """What /object_info says of the nodes that prompts are made of."""
    told = server.request("/object_info")
    others = {*SINKS.values(), *(kind for sources in SOURCES.values() for kind, _ in sources)}
    return {
        kind: node
        for kind, node in told.items()
        if kind in others or (kind.startswith("DizzyDiff") and kind not in APART)
    }


def sockets(info: Info, kind: str) -> dict[str, list[Any]]:
    """The inputs of a node: name to [type or options, settings]."""
    return {**required(info, kind), **info[kind]["input"].get("optional", {})}


def required(info: Info, kind: str) -> dict[str, list[Any]]:
    """Those that must be there; of an input that grows, as many as it begins with."""
    found = {}
    for name, socket in info[kind]["input"].get("required", {}).items():
        if socket[0] != GROWING:
            found[name] = socket
            continue
        template = socket[1]["template"]
        (each,) = template["input"]["required"].values()
        found |= {f"{name}.{template['prefix']}{n}": each for n in range(template["min"])}
    return found


def is_widget(socket: list[Any]) -> bool:
    if isinstance(socket[0], list):
        return True
    return socket[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") and not socket[1].get("forceInput")


def options(socket: list[Any]) -> list[Any]:
    return socket[0] if isinstance(socket[0], list) else socket[1]["options"]


def value(draw: Draw, kind: str, name: str, socket: list[Any]) -> Any:
    """A valid value of a widget."""
    if name in CHOSEN.get(kind, {}):
        return draw(st.sampled_from(CHOSEN[kind][name]))
    if socket[0] == "BOOLEAN":
        return draw(st.booleans())
    if isinstance(socket[0], list) or socket[0] == "COMBO":
        return draw(st.sampled_from([option for option in options(socket) if option != ENDLESS]))
    low, high = socket[1]["min"], socket[1]["max"]
    low, high = CHEAP.get(name, (low, high))
    return draw(st.integers(int(low), int(high)) if socket[0] == "INT" else st.floats(low, high))


def add(draw: Draw, info: Info, graph: Graph, kind: str, depth: int, **given_inputs: Any) -> str:
    """A node with random values, and all that it must be linked to, put into the graph; its id."""
    inputs = dict(given_inputs)
    for name, socket in sockets(info, kind).items():
        if name in inputs:
            continue
        if is_widget(socket):
            inputs[name] = value(draw, kind, name, socket)
        elif name in required(info, kind) or name in NEEDED.get(kind, ()):
            sources = SOURCES[socket[0]]
            source, slot = draw(st.sampled_from(sources)) if depth > 0 else sources[0]
            inputs[name] = [add(draw, info, graph, source, depth - 1), slot]
    graph[key := str(len(graph) + 1)] = {"class_type": kind, "inputs": inputs}
    return key


@st.composite
def valid(draw: Draw, info: Info) -> Graph:
    """A graph around one node of the pack, whose first output is used and shown."""
    graph: Graph = {}
    kind = draw(st.sampled_from(sorted(name for name in info if name.startswith("DizzyDiff"))))
    shown = [add(draw, info, graph, kind, 1), 0]
    made = info[kind]["output"][0]
    if made in SINKS:
        name = next(name for name, socket in sockets(info, SINKS[made]).items() if socket[0] == made)
        shown = [add(draw, info, graph, SINKS[made], 0, **{name: shown}), 0]
    graph[str(len(graph) + 1)] = {"class_type": "PreviewAny", "inputs": {"source": shown}}
    return graph


@st.composite
def invalid(draw: Draw, info: Info) -> tuple[Graph, str, str]:
    """A graph with one wrong input at a node of the pack: (graph, id of the node, name of the input)."""
    graph = draw(valid(info))
    places = [
        (key, name, socket)
        for key, node in graph.items()
        if node["class_type"].startswith("DizzyDiff")
        for name, socket in sockets(info, node["class_type"]).items()
        if not is_widget(socket) or socket[0] not in ("STRING", "BOOLEAN") or name in UNREADABLE
    ]
    key, name, socket = draw(st.sampled_from(places))
    inputs, needed = graph[key]["inputs"], name in required(info, graph[key]["class_type"])
    if needed and draw(st.integers(0, 4)) == 0:
        del inputs[name]
    elif not is_widget(socket):
        loader = add(draw, info, graph, "DizzyDiffLoadPipeline", 0)
        inputs[name] = [loader, 0 if socket[0] == "VAE" else 2]
    elif socket[0] == "STRING":
        inputs[name] = draw(st.sampled_from(UNREADABLE[name]))
    elif socket[0] in ("INT", "FLOAT"):
        low, high = socket[1]["min"], socket[1]["max"]
        far = st.integers(1, 10**6)
        inputs[name] = draw(
            st.one_of(
                far.map(lambda d: high + d),
                far.map(lambda d: low - d),
                st.sampled_from(["many", "", None, {}]),
            )
        )
    else:
        inputs[name] = draw(st.sampled_from(["", "../../etc/passwd", "/etc/passwd", "no such thing", "💫"]))
    return graph, key, name


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """So many examples, the same in every run."""
    examples: list[Any] = []

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Any) -> None:
        examples.append(example)

    collect()
    return examples


def said(entry: Mapping[str, Any]) -> str:
    """How a prompt ended: "success", "interrupted", or the node that failed and its message."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_interrupted":
            return "interrupted"
        if kind == "execution_error":
            return f"{data['node_type']}: {data['exception_type']}: {data['exception_message'].strip()}"
    return str(entry["status"]["status_str"])


def refusal(error: urllib.error.HTTPError) -> str:
    return f"HTTP {error.code}: {error.read().decode(errors='replace')[:600]}"


def run_valid(server: Server, count: int) -> Outcome:
    """Every prompt must succeed."""
    outcome, start = Outcome(), time.monotonic()
    for graph in drawn(valid(described(server)), count):
        outcome.prompts += 1
        try:
            ending = said(server.run(graph))
        except urllib.error.HTTPError as error:
            ending = refusal(error)
        if ending == "success":
            outcome.succeeded += 1
        else:
            outcome.failures[f"{ending}\n    {json.dumps(graph)}"] += 1
    outcome.seconds = time.monotonic() - start
    return outcome


def run_invalid(server: Server, count: int) -> Outcome:
    """Every prompt must be refused, with an error at the node that names the input."""
    outcome, start = Outcome(), time.monotonic()
    for graph, key, name in drawn(invalid(described(server)), count):
        outcome.prompts += 1
        wrong = f"{graph[key]['class_type']}.{name} = {json.dumps(graph[key]['inputs'].get(name, 'missing'))}"
        try:
            server.request("/prompt", {"prompt": graph})
            outcome.failures[f"accepted: {wrong}"] += 1
        except urllib.error.HTTPError as error:
            answer = json.load(error)
            told = (
                answer.get("node_errors", {}).get(key, {}).get("errors", [])
                if isinstance(answer.get("node_errors"), dict)
                else []
            )
            if error.code == 400 and any(
                each.get("extra_info", {}).get("input_name") == name for each in told
            ):
                outcome.succeeded += 1
            else:
                outcome.failures[f"HTTP {error.code}: {wrong}: {json.dumps(answer)[:400]}"] += 1
    outcome.seconds = time.monotonic() - start
    return outcome


def run_interrupted(server: Server, count: int) -> Outcome:
    """Every prompt must end soon after it is interrupted, at whatever moment."""
    outcome, start = Outcome(), time.monotonic()
    long = json.loads((ROOT / "workflows" / "api" / "draft_refine.json").read_text(encoding="utf-8"))
    (sampler,) = [node for node in long.values() if node["class_type"] == "DizzyDiffDraftRefineKSampler"]
    for noise, delay in enumerate(drawn(st.floats(0.0, 1.0), count)):
        outcome.prompts += 1
        sampler["inputs"]["seed"] = 1000 + noise
        queued = server.request("/prompt", {"prompt": long})["prompt_id"]
        time.sleep(delay)
        server.request("/interrupt", {})
        ending = said(server.finished(queued))
        if ending in ("interrupted", "success"):
            outcome.succeeded += 1
        else:
            outcome.failures[ending] += 1
        outcome.interrupted += ending == "interrupted"
    outcome.seconds = time.monotonic() - start
    return outcome


def memory(server: Server) -> int:
    """Bytes that the server holds once models, caches and history are dropped."""
    server.request("/history", {"clear": True})
    server.request("/free", {"unload_models": True, "free_memory": True})
    time.sleep(3)
    return int(psutil.Process(server.process.pid).memory_info().rss)


def attack(
    server: Server, valid_prompts: int, invalid_prompts: int, interruptions: int
) -> list[dict[str, Any]]:
    """One row an attack, and one for memory; failures with how often they came."""
    # Memory grows until every sampler and node was used once (over some 200 prompts), and then stays: that is
    # not what is asked for.
    run_valid(server, 20 + valid_prompts // 2)
    run_interrupted(server, 5)
    before = memory(server)
    outcomes = {
        "valid": run_valid(server, valid_prompts),
        "invalid": run_invalid(server, invalid_prompts),
        "interrupted": run_interrupted(server, interruptions),
    }
    after = memory(server)
    held = {"before MB": before / 2**20, "after MB": after / 2**20, "growth": after / before - 1}
    alive = server.process.poll() is None
    return [
        *(outcome.row(name) for name, outcome in outcomes.items()),
        {"attack": "memory", **held, "alive": alive},
    ]


def run(quick: bool) -> list[dict[str, Any]]:
    """500 valid and 500 invalid prompts and 100 interruptions; 40 of each for the quick run."""
    counts = (40, 40, 40) if quick else (500, 500, 100)
    base = comfyui.make_base(ROOT, ROOT / ".dev" / "base-robustness")
    log = ROOT / ".dev" / "logs" / "robustness.log"
    with running(Path(sys.executable), comfyui.locate(ROOT).path, base, base / "output", log) as server:
        return attack(server, *counts)
