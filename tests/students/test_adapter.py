# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of Distill Guidance: what is read, and what is said about what cannot be one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dizzydiff.students import adapter, errors

LAYER = "diffusion_model.layer"
Tensors = dict[str, Tensor]
Metadata = dict[str, Any]


def tensors() -> Tensors:
    return {
        f"{LAYER}.lora_up.weight": torch.ones(6, 2),
        f"{LAYER}.lora_down.weight": torch.ones(2, 5),
        adapter.PROJECTION: torch.ones(5, 256),
        "losses": torch.zeros(3),
    }


def metadata() -> Metadata:
    return {
        "format": adapter.ADAPTER_FORMAT,
        "time_layer": "layer",
        "teacher": "0" * 16,
        "guidance_weight": "g - 1",
        "guidance_scale_range": [1.0, 8.0],
    }


def saved(path: Path, values: Tensors, settings: Metadata) -> Path:
    save_file(values, path, {key: json.dumps(value) for key, value in settings.items()})
    return path


def test_an_adapter_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", tensors(), metadata())
    found = adapter.read(path, "a")
    assert isinstance(found, adapter.Adapter)
    assert (found.layers, found.time_layer, found.guidance.scale_range) == ([LAYER], "layer", (1.0, 8.0))


def without(*keys: str) -> Callable[[Tensors], None]:
    return lambda values: [values.pop(key) for key in keys] and None


def with_(**changes: Tensor) -> Callable[[Tensors], None]:
    names = {"up": f"{LAYER}.lora_up.weight", "down": f"{LAYER}.lora_down.weight", "c": adapter.PROJECTION}
    return lambda values: values.update({names[key]: value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (without(f"{LAYER}.lora_up.weight", f"{LAYER}.lora_down.weight"), errors.DamagedFile),
        (without(f"{LAYER}.lora_up.weight"), errors.DamagedFile),
        (without(f"{LAYER}.lora_down.weight"), errors.DamagedFile),
        (without(adapter.PROJECTION), errors.DamagedFile),
        (with_(up=torch.ones(6, 3)), errors.DamagedFile),
        (with_(up=torch.ones(6, 2, dtype=torch.int8)), errors.DamagedFile),
        (with_(up=torch.ones(6, 2, 1)), errors.DamagedFile),
        (with_(up=torch.ones(0, 2)), errors.DamagedFile),
        (with_(c=torch.ones(5)), errors.DamagedFile),
        (with_(c=torch.ones(5, 99)), errors.WrongGuidanceShape),
        (with_(c=torch.full((5, 256), torch.nan)), errors.NotFinite),
        (with_(down=torch.full((2, 5), torch.inf)), errors.NotFinite),
        (lambda values: values.update({f"{LAYER}.alpha": torch.ones(1)}), errors.DamagedFile),
        (lambda values: values.update({f"{LAYER}.alpha": torch.ones(2, 2)}), errors.DamagedFile),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(
    tmp_path: Path, change: Callable[[Tensors], None], error: type[Exception]
) -> None:
    values = tensors()
    change(values)
    with pytest.raises(error, match=r"a\.safetensors"):
        adapter.read(saved(tmp_path / "a.safetensors", values, metadata()), "a.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("time_layer", 5, errors.DamagedFile),
        ("time_layer", None, errors.DamagedFile),
        ("teacher", ["x"], errors.DamagedFile),
        ("guidance_scale_range", [8, 1], errors.ConfigMismatch),
        ("guidance_scale_range", [0, float("nan")], errors.ConfigMismatch),
        ("guidance_scale_range", [0, 10**400], errors.ConfigMismatch),
        ("guidance_weight", ["g"], errors.ConfigMismatch),
        ("format", "another", errors.NotAnAdapter),
    ],
)
def test_metadata_that_says_something_else_is_refused(
    tmp_path: Path, key: str, value: object, error: type[Exception]
) -> None:
    path = saved(tmp_path / "a.safetensors", tensors(), {**metadata(), key: value})
    with pytest.raises(error, match=r"a\.safetensors"):
        adapter.read(path, "a.safetensors")


@pytest.mark.parametrize("key", adapter.NEEDED_METADATA)
def test_an_adapter_without_its_metadata_is_refused(tmp_path: Path, key: str) -> None:
    settings = metadata()
    del settings[key]
    path = saved(tmp_path / "a.safetensors", tensors(), settings)
    with pytest.raises(errors.DamagedFile, match=key):
        adapter.read(path, "a.safetensors")


def test_adapters_and_manifests_need_their_teacher_and_networks_do_not() -> None:
    formats = {"an adapter": adapter.ADAPTER_FORMAT, "a manifest": adapter.MANIFEST_FORMAT, "a network": "pt"}
    need = [kind for kind, said in formats.items() if adapter.needs_teacher({"format": said})]
    assert need == ["an adapter", "a manifest"]
    assert not adapter.needs_teacher({})


def manifest(path: Path, centres: Tensor, names: Any) -> Path:
    return saved(path, {adapter.CENTRES: centres}, {"format": adapter.MANIFEST_FORMAT, "files": names})


def test_a_manifest_finds_the_files_beside_it(tmp_path: Path) -> None:
    saved(tmp_path / "one.safetensors", tensors(), metadata())
    found = adapter.read(manifest(tmp_path / "m.safetensors", torch.ones(1, 4), ["one.safetensors"]), "m")
    assert isinstance(found, adapter.Manifest) and found.adapter(0).layers == [LAYER]


@pytest.mark.parametrize(
    ("centres", "names", "error"),
    [
        (torch.full((1, 4), torch.nan), ["one.safetensors"], errors.NotFinite),
        (torch.ones(1, 4, dtype=torch.int32), ["one.safetensors"], errors.DamagedFile),
        (torch.ones(1), ["one.safetensors"], errors.DamagedFile),
        (torch.ones(2, 4), ["one.safetensors"], errors.DamagedFile),
        (torch.ones(1, 4), ["../one.safetensors"], errors.DamagedFile),
        (torch.ones(1, 4), ["C:one.safetensors"], errors.DamagedFile),
        (torch.ones(1, 4), ["..\\one.safetensors"], errors.DamagedFile),
        (torch.ones(1, 4), ["one.safetensors.pickle"], errors.DamagedFile),
        (torch.ones(1, 4), [5], errors.DamagedFile),
        (torch.ones(1, 4), "one.safetensors", errors.DamagedFile),
    ],
)
def test_manifests_that_name_no_students_are_refused(
    tmp_path: Path, centres: Tensor, names: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"m\.safetensors"):
        adapter.read(manifest(tmp_path / "m.safetensors", centres, names), "m.safetensors")
