# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker is told to become the same ComfyUI as this one, and on which device."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.cli_args import args

from ...common.messages import Say
from ..devices import canonical, parse_devices
from ..errors import BadDevices, NoCluster

NODE = "DizzyDiffCluster"
OWN = (
    "listen", "port", "tls_keyfile", "tls_certfile", "auto_launch", "enable_manager", "front_end_version",
    "front_end_root", "cuda_device", "default_device", "oneapi_device_selector", "cpu", "quick_test_for_ci",
    "database_url", "enable_assets", "verbose", "log_stdout", "temp_directory", "list_feature_flags",
)  # fmt: skip
"""ComfyUI's settings that are not a worker's."""
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
"""As ComfyUI's --cuda-device sets them."""


@dataclass(frozen=True)
class Wish:
    """What Draft Cluster was told. devices: of a local cluster, one a worker."""

    address: str
    workers: int
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entrance:
    """told: for ``Host.enter``. options: for Ray, where to place it."""

    told: dict[str, Any]
    options: dict[str, Any]


def entrances_here(devices: Sequence[str]) -> list[Entrance]:
    """One for each device of this machine."""
    options = {"num_cpus": 1, "num_gpus": 0}
    return [Entrance(_told(torch.device(name), here=True), options) for name in devices]


def entrances_there(wish: Wish, resources: Mapping[str, float], say: Say) -> list[Entrance]:
    """For workers that Ray places: on GPUs, or on CPUs where the cluster has no GPU and workers are counted.

    Raises :class:`NoCluster` where there is no place for any.
    """
    kind = "GPU" if resources.get("GPU", 0) >= 1 else "CPU"
    places = int(resources.get(kind, 0))
    if kind == "CPU" and not wish.workers:
        raise NoCluster(
            f"The cluster at {wish.address!r} has no GPU. Start Ray on machines that have, or set workers to "
            "a number to use CPUs."
        )
    if not places:
        raise NoCluster(
            f"The cluster at {wish.address!r} has no place for a worker: neither a GPU nor a CPU. Start Ray "
            "on a further machine."
        )
    if wish.workers > places:
        say(f"Draft Cluster has {places} workers of {wish.workers}: the cluster has {places} {kind}s.")
    own = (
        {"num_cpus": 0, "num_gpus": 1} if kind == "GPU" else {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    )
    count = min(wish.workers or places, places)
    told = _told(None if kind == "GPU" else torch.device("cpu"), here=False)
    return [Entrance(told, own) for _ in range(count)]


def devices_here(devices: str, workers: int) -> tuple[str, ...]:
    """Where the workers of a local cluster run: "auto" is every GPU but ComfyUI's own, or ``workers``
    processes on the CPU where ComfyUI runs on that. A list names the device of each worker, and begins again
    where there are more. Raises :class:`BadDevices`.
    """
    if devices.strip().lower() != "auto":
        named = [str(place) for part in devices.split(",") for place in parse_devices(part)]
        return tuple(named[n % len(named)] for n in range(workers or len(named)))
    main = canonical(comfy.model_management.get_torch_device())
    if main.type == "cpu":
        if not workers:
            raise BadDevices(
                "This machine has no GPU beside ComfyUI's own device. Set workers to a number to have so "
                "many processes on the CPU, or devices to a list such as: cpu, cpu"
            )
        return ("cpu",) * workers
    others = [canonical(place) for place in comfy.model_management.get_all_torch_devices()]
    found = tuple(str(place) for place in others if place != main)
    if not found:
        raise BadDevices(
            f"This machine has no GPU but {main}, on which ComfyUI runs. Set devices to a list such as: "
            f"{main}, where there is memory for a second copy; or name the address of a cluster."
        )
    return found[: workers or None]


def _told(place: torch.device | None, *, here: bool) -> dict[str, Any]:
    """place: the worker's device. None: whatever Ray gives. here: on this machine, in this very ComfyUI."""
    settings = {name: value for name, value in vars(args).items() if name not in OWN}
    settings["cpu"] = place is not None and place.type == "cpu"
    return {
        "comfyui": str(Path(folder_paths.__file__).resolve().parent),
        "here": here,
        "node": NODE,
        "settings": pickle.dumps(settings),
        "environment": {} if place is None else _only(place),
        "threads": torch.get_num_threads(),
    }


def _only(place: torch.device) -> dict[str, str]:
    """The environment in which a device is the only one."""
    if place.type == "cpu":
        return {}
    if place.type == "xpu":
        return {"ONEAPI_DEVICE_SELECTOR": f"level_zero:{place.index or 0}"}
    seen = next((os.environ[name] for name in VISIBLE if os.environ.get(name)), "")
    names = [name.strip() for name in seen.split(",")] if seen else []
    index = place.index or 0
    return dict.fromkeys(VISIBLE, names[index] if index < len(names) else str(index))
