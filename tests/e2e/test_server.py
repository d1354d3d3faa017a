# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user meets in a running ComfyUI: the nodes, their help, and errors that leave the server running."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from devtools.server import Server

NODES = [
    "DizzyDiffCluster",
    "DizzyDiffCompare",
    "DizzyDiffCompareSigmas",
    "DizzyDiffDevices",
    "DizzyDiffDistillGuidance",
    "DizzyDiffDraftRefine",
    "DizzyDiffDraftRefineKSampler",
    "DizzyDiffExportLoRA",
    "DizzyDiffGuidanceSchedule",
    "DizzyDiffGuidanceSweep",
    "DizzyDiffLoadPipeline",
    "DizzyDiffLoadStudent",
    "DizzyDiffPoissonNoise",
    "DizzyDiffSpinNoise",
    "DizzyDiffStabilityGrid",
    "DizzyDiffStabilityProfile",
    "DizzyDiffStabilitySampler",
    "DizzyDiffStepsNeeded",
    "DizzyDiffStudentGuidance",
    "DizzyDiffStudentSampler",
    "DizzyDiffWatchStability",
]


def error_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI shows at the node that failed: node_id, node_type, exception_type, exception_message."""
    assert entry["status"]["status_str"] == "error", entry["status"]
    (error,) = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    return error


def good_prompt(root: Path, guidance: float) -> dict[str, Any]:
    """The demo's graph, at a guidance of its own so that no cache answers, in two steps."""
    prompt = json.loads((root / "workflows" / "api" / "guided_student.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"] == "DizzyDiffStudentGuidance":
            node["inputs"]["guidance"] = guidance
        elif node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    return prompt


def load_student(name: str) -> dict[str, Any]:
    """A graph that loads a student and needs it: one step on a small latent."""
    return {
        "1": {"class_type": "DizzyDiffLoadStudent", "inputs": {"student": name, "weight_dtype": "default"}},
        "2": {"class_type": "DizzyDiffLoadPipeline", "inputs": {"pipeline": "tiny"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "a red circle on white"}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 96, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["4", 0],
                "seed": 0, "steps": 1, "cfg": 1.0, "denoise": 1.0,
                "sampler_name": "euler", "scheduler": "simple",
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["2", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "bad"}},
    }  # fmt: skip


def test_every_node_is_listed_once(comfy_server: Server) -> None:
    nodes = comfy_server.request("/object_info")
    assert sorted(name for name in nodes if name.startswith("DizzyDiff")) == NODES


def test_every_sampler_node_lists_the_scheduler_and_samples_with_it(comfy_server: Server) -> None:
    nodes = comfy_server.request("/object_info")
    for node in ("KSampler", "KSamplerAdvanced", "BasicScheduler", "DizzyDiffDraftRefineKSampler"):
        assert "dizzydiff" in str(nodes[node]["input"]["required"]["scheduler"]), node
    prompt = load_student("student")
    prompt["1"] = {"class_type": "DizzyDiffLoadPipeline", "inputs": {"pipeline": "tiny"}}
    prompt["8"] = {
        "class_type": "DizzyDiffStabilityProfile",
        "inputs": {
            "model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0], "latent": ["4", 0],
            "cfg": 1.0, "levels": 8, "probes": 2, "seed": 0,
        },
    }  # fmt: skip
    prompt["5"]["inputs"] |= {"model": ["8", 2], "scheduler": "dizzydiff", "steps": 4}
    outputs = comfy_server.run(prompt)["outputs"]
    assert len(outputs["7"]["images"]) == 1
    assert "Measured" in outputs["8"]["text"][0] and len(outputs["8"]["images"]) == 1


def test_sigmas_are_compared_by_an_input_that_grows(comfy_server: Server) -> None:
    def scheduled(name: str) -> dict[str, Any]:
        inputs = {"model": ["1", 0], "scheduler": name, "steps": 6, "denoise": 1.0}
        return {"class_type": "BasicScheduler", "inputs": inputs}

    prompt: dict[str, Any] = {
        "1": {"class_type": "DizzyDiffLoadPipeline", "inputs": {"pipeline": "tiny"}},
        "2": scheduled("karras"),
        "3": scheduled("simple"),
        "4": {
            "class_type": "DizzyDiffCompareSigmas",
            "inputs": {"grids.sigmas0": ["2", 0], "grids.sigmas1": ["3", 0], "names": "karras"},
        },
    }
    output = comfy_server.run(prompt)["outputs"]["4"]
    assert output["text"] == ["karras: 6 steps", "2: 6 steps"] and len(output["images"]) == 1
    for wrong in ({"grids.sigmas0": ["1", 1]}, {}):
        prompt["4"]["inputs"] = {"names": "", **wrong}
        with pytest.raises(urllib.error.HTTPError) as refused:
            comfy_server.request("/prompt", {"prompt": prompt})
        (error,) = json.load(refused.value)["node_errors"]["4"]["errors"]
        assert error["extra_info"]["input_name"] == "grids.sigmas0"


@pytest.mark.parametrize("node", NODES)
def test_every_node_and_each_of_its_sockets_says_what_it_is_for(node: str, comfy_server: Server) -> None:
    told = comfy_server.request(f"/object_info/{node}")[node]
    assert told["description"] and told["search_aliases"]
    assert told["category"].partition("/")[0] == "DizzyDiff" and told["category"].count("/") == 1
    inputs = {
        name: kind[1]
        for group in ("required", "optional")
        for name, kind in told["input"].get(group, {}).items()
    }
    assert not [name for name, options in inputs.items() if not options.get("tooltip")]
    assert len(told["output_tooltips"]) == len(told["output"]) and all(told["output_tooltips"])


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_a_help_page(node: str, comfy_server: Server) -> None:
    with urllib.request.urlopen(
        f"{comfy_server.address}/extensions/dizzydiff/docs/{node}.md", timeout=30
    ) as answer:
        assert len(answer.read()) > 200


def write_truncated(path: Path) -> None:
    save_file({"time_embedding.cond_proj.weight": torch.zeros(320, 256)}, path)
    path.write_bytes(path.read_bytes()[:-1000])


def write_unguided(path: Path) -> None:
    save_file(
        {
            "conv_in.weight": torch.zeros(320, 4, 3, 3),
            "time_embedding.linear_1.weight": torch.zeros(1280, 320),
        },
        path,
    )


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (write_truncated, "dizzydiff.DamagedFile"),
        (write_unguided, "dizzydiff.NoGuidanceInput"),
    ],
    ids=["truncated", "unguided"],
)
def test_a_bad_file_is_an_error_at_its_node_and_the_next_prompt_works(
    write: Any, kind: str, comfy_server: Server, models: Path, root: Path, request: pytest.FixtureRequest
) -> None:
    name = f"{request.node.callspec.id}.safetensors"
    write(models / "diffusion_models" / name)
    error = error_of(comfy_server.run(load_student(name)))
    assert (error["node_id"], error["node_type"]) == ("1", "DizzyDiffLoadStudent")
    assert error["exception_type"] == kind, "no path into custom_nodes"
    assert name in error["exception_message"]
    assert len(error["exception_message"]) > len(name) + 40, (
        "the message says what was expected and what to do"
    )

    guidance = 2.0 + len(name) / 100
    assert comfy_server.run(good_prompt(root, guidance))["status"]["status_str"] == "success"


@pytest.mark.parametrize(
    ("workflow", "node", "name", "value", "said"),
    [
        ("guidance_sweep", "DizzyDiffGuidanceSweep", "scales", "1, two, 4", "expected numbers from 0 to 100"),
        ("draft_refine", "DizzyDiffDevices", "devices", "two of them", 'Expected "auto", "batch"'),
        ("draft_refine", "DizzyDiffDevices", "devices", "cuda:7", "is not on this machine"),
        (
            "draft_refine",
            "DizzyDiffDraftRefineKSampler",
            "denoise",
            1e-09,
            "expected 0, or a share of the noise from 0.001 to 1",
        ),
        (
            "draft_refine",
            "DizzyDiffDraftRefineKSampler",
            "denoise",
            2,
            "expected 0, or a share of the noise from 0.001 to 1",
        ),
        ("guided_student", "DizzyDiffStudentGuidance", "guidance", 101, "100"),
        ("draft_refine", "DizzyDiffDevices", "devices", "cpu,,cpu", "a comma without a device"),
        ("draft_refine", "DizzyDiffDevices", "devices", " ", "No devices are given"),
        ("distil", "DizzyDiffDistillGuidance", "prompts", "\n ", "The list of prompts is empty"),
        ("distil", "DizzyDiffDistillGuidance", "name", "../mine", "such as my_student"),
    ],
)
def test_a_wrong_value_is_refused_at_its_node_before_anything_runs(
    workflow: str, node: str, name: str, value: Any, said: str, comfy_server: Server, root: Path
) -> None:
    prompt = json.loads((root / "workflows" / "api" / f"{workflow}.json").read_text(encoding="utf-8"))
    (key,) = [key for key, each in prompt.items() if each["class_type"] == node]
    prompt[key]["inputs"][name] = value
    with pytest.raises(urllib.error.HTTPError) as refused:
        comfy_server.request("/prompt", {"prompt": prompt})
    answer = json.load(refused.value)
    assert (refused.value.code, list(answer["node_errors"])) == (400, [key])
    # Core repeats what a node says at each of the inputs that it checks together.
    (error,) = [
        each for each in answer["node_errors"][key]["errors"] if each["extra_info"]["input_name"] == name
    ]
    assert said in str(error) and (str(value).strip() in str(error))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02}q\x00.", "this is a pickle"),
        (b"this is no weights file", "not a safetensors file"),
        (b"", "truncated or empty"),
    ],
    ids=["pickle", "text", "empty"],
)
def test_a_file_that_is_no_safetensors_is_refused_before_anything_runs(
    content: bytes, said: str, comfy_server: Server, models: Path
) -> None:
    file = models / "diffusion_models" / "other.safetensors"
    file.write_bytes(content)
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            comfy_server.request("/prompt", {"prompt": load_student(file.name)})
    finally:
        file.unlink()
    (error,) = json.load(refused.value)["node_errors"]["1"]["errors"]
    assert error["extra_info"]["input_name"] == "student" and said in error["details"]


def with_old_names(prompt: dict[str, Any], width: Any) -> dict[str, Any]:
    """The prompt as it was when predictions_per_round was called width."""
    for node in prompt.values():
        if node["inputs"].pop("predictions_per_round", None) is not None:
            node["inputs"]["width"] = width
    return prompt


def test_a_prompt_from_before_an_input_was_renamed_runs_as_it_did(comfy_server: Server, root: Path) -> None:
    def rounds(prompt: dict[str, Any]) -> int:
        for key in [key for key, node in prompt.items() if node["class_type"] == "PreviewImage"]:
            del prompt[key]
        (told,) = [
            out["draft_refine"]
            for out in comfy_server.run(prompt)["outputs"].values()
            if "draft_refine" in out
        ]
        return told[0]["rounds"]

    text = (root / "workflows" / "api" / "draft_refine.json").read_text(encoding="utf-8")
    today, old = json.loads(text), with_old_names(json.loads(text), 2)
    for node in today.values():
        if "predictions_per_round" in node["inputs"]:
            node["inputs"]["predictions_per_round"] = 2
    assert rounds(old) == rounds(today) > rounds(json.loads(text))


@pytest.mark.parametrize("width", [-1, 65, "two"])
def test_a_wrong_value_by_an_old_name_is_refused(width: Any, comfy_server: Server, root: Path) -> None:
    text = (root / "workflows" / "api" / "draft_refine.json").read_text(encoding="utf-8")
    with pytest.raises(urllib.error.HTTPError) as refused:
        comfy_server.request("/prompt", {"prompt": with_old_names(json.loads(text), width)})
    answer = json.load(refused.value)
    assert "width" in str(answer["node_errors"]) and "64" in str(answer["node_errors"])


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..\\..\\secrets.safetensors"])
def test_a_path_out_of_the_models_folders_is_refused(name: str, comfy_server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        comfy_server.request("/prompt", {"prompt": load_student(name)})
    assert refused.value.code == 400
    assert comfy_server.request("/system_stats")


def test_a_watched_model_learns_from_the_pictures_that_a_server_makes(
    comfy_server: Server, root: Path
) -> None:
    """Three pictures as they would be without; then the sampler's sigmas are those learned."""

    def pictures(seed: int, watched: bool) -> list[bytes]:
        prompt = good_prompt(root, 3.75)
        (sampler,) = [node for node in prompt.values() if node["class_type"] == "KSampler"]
        (size,) = [node for node in prompt.values() if node["class_type"] == "EmptyLatentImage"]
        sampler["inputs"] |= {"seed": seed, "steps": 12}
        size["inputs"]["batch_size"] = 3
        if watched:
            inputs = {"model": sampler["inputs"]["model"], "replace_sigmas": True}
            prompt["watch"] = {"class_type": "DizzyDiffWatchStability", "inputs": inputs}
            sampler["inputs"]["model"] = ["watch", 0]
        ran = comfy_server.run(prompt)
        assert ran["status"]["status_str"] == "success", ran["status"]
        (saved,) = [output["images"] for output in ran["outputs"].values() if "images" in output]
        return [Image.open(comfy_server.output / image["filename"]).tobytes() for image in saved]

    assert pictures(1, watched=True) == pictures(1, watched=False)
    assert pictures(2, watched=True) != pictures(2, watched=False)
    assert list((comfy_server.base / "user").rglob("stability/*.safetensors"))
