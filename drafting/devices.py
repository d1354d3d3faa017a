# SPDX-License-Identifier: GPL-3.0-or-later
"""The devices a MODEL is drafted on: what the user names, and core's replicas on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.multigpu
import torch

from ..common.messages import Say, inform
from .errors import BadDevices, CannotClone
from .verdicts import Verdicts

DEVICES = "dizzydiff_devices"
"""Key in ``model_options`` for what Draft Devices was told, {"width": int, "batch": bool}, and for the
verdicts on what was drafted on it, {"verdicts": Verdicts}. Draft Cluster adds its workers, {"cluster": Pool},
or None in a worker itself.
"""
REPLICAS, REPLICA_OPTIONS = "multigpu", "multigpu_options"
"""Core's key of a MODEL's additional models, and that of their options."""

WORDS = ("auto", "batch")
"""What Draft Devices takes beside names of devices."""
MOST_COMBINED = 4
"""Devices up to which every choice of them is offered; of more, the first so many."""
EXPECTED = 'Expected "auto", "batch", or names such as "cuda:0, cuda:1".'
ONE_DEVICE = (
    "Up to every second model call is skipped where that stays within the tolerance. With devices set to "
    "batch, several states are evaluated at a time."
)


def choices() -> list[str]:
    """What a user picks from: the words, and lists of the devices that ComfyUI uses here, longest first."""
    places = [str(place) for place in comfy.model_management.get_all_torch_devices()]
    counts = range(len(places), 1, -1)
    if len(places) <= MOST_COMBINED:
        lists = [chosen for count in counts for chosen in itertools.combinations(places, count)]
    else:
        lists = [tuple(places[:count]) for count in counts]
    return [*WORDS, *map(", ".join, lists)]


def spread(model: Any, devices: str, width: int, say: Say = inform) -> Any:
    """The model with replicas on ``devices``: "auto" (all that ComfyUI uses), "batch" (none), or names such
    as "cuda:0, cuda:1".

    Raises :class:`BadDevices` and :class:`CannotClone`.
    """
    wish = devices.strip().lower()
    if wish == "batch":
        model = _without_replicas(model)
    else:
        places = comfy.model_management.get_all_torch_devices() if wish == "auto" else parse_devices(devices)
        main = canonical(model.load_device)
        others = [place for place in dict.fromkeys(map(canonical, places)) if place != main]
        if wish == "auto":
            others = _that_can_be_had(model, others, say)[: width - 1 if width else None]
        elif not others:
            say(f"Draft Devices has no device but {main}. {ONE_DEVICE}")
        model = _with_replicas(model, others)
    model.model_options[DEVICES] = {"width": width, "batch": wish == "batch", "verdicts": Verdicts()}
    return model


def clustered(model: Any, cluster: Any, width: int) -> Any:
    """The model without replicas, to be drafted by the workers of a cluster. None: in a worker itself."""
    model = _without_replicas(model).clone()
    model.model_options[DEVICES] = {
        "width": width,
        "batch": False,
        "verdicts": Verdicts(),
        "cluster": cluster,
    }
    return model


def _that_can_be_had(model: Any, others: list[torch.device], say: Say) -> list[torch.device]:
    """Of the devices that "auto" finds; none of a model that cannot be copied. Says so where none is left."""
    if not others:
        say(f"Draft Devices found no device but {canonical(model.load_device)}. {ONE_DEVICE}")
    elif model.cached_patcher_init is None:
        say(f"Draft Devices leaves out {', '.join(map(str, others))}: {_no_recipe(model)} {ONE_DEVICE}")
        return []
    return others


def _no_recipe(model: Any) -> str:
    return (
        f"the loader of this {type(model.model).__name__} keeps no recipe for a second copy. Load it with "
        "Load Checkpoint, Load Diffusion Model or Load Guided Student."
    )


def canonical(place: torch.device) -> torch.device:
    """One name for a device that has several: "mps" is "mps:0", and "cpu:0" is "cpu"."""
    if place.type == "cpu":
        return torch.device("cpu", place.index) if place.index else torch.device("cpu")
    return torch.device(place.type, place.index or 0)


def _without_replicas(model: Any) -> Any:
    model = model.clone()
    if model.get_additional_models_with_key(REPLICAS):
        model.set_additional_models(REPLICAS, [])
        model.model_options.pop(REPLICA_OPTIONS, None)
    return model


def _with_replicas(model: Any, others: Sequence[torch.device]) -> Any:
    if others and model.cached_patcher_init is None:
        raise CannotClone(f"No copy of the model can be had for {others[0]}: {_no_recipe(model)}")
    model = model.clone()
    kept = {canonical(clone.load_device): clone for clone in model.get_additional_models_with_key(REPLICAS)}
    clones = []
    for place in others:
        clone = kept.get(place) or model.deepclone_multigpu(new_load_device=place)
        clone.is_multigpu_base_clone = True
        clones.append(clone)
    model.set_additional_models(REPLICAS, clones)
    model.match_multigpu_clones()
    comfy.multigpu.GPUOptionsGroup().register(model)
    return model


def parse_devices(names: str) -> list[torch.device]:
    """Devices from "cuda:0, cuda:1". Raises :class:`BadDevices` for what is no device, or none of this
    machine.
    """
    places = []
    if not names.strip():
        raise BadDevices(f"No devices are given. {EXPECTED}")
    for name in (part.strip() for part in names.split(",")):
        if not name:
            raise BadDevices(f"{names!r} has a comma without a device beside it. {EXPECTED}")
        try:
            place = torch.device(name)
        except RuntimeError as error:
            raise BadDevices(f"{name!r} in {names!r} is no device. {EXPECTED}") from error
        if place.type != "cpu" and not _is_there(place):
            raise BadDevices(
                f"{name!r} in {names!r} is not on this machine. Expected one of: "
                f"{', '.join(map(str, comfy.model_management.get_all_torch_devices()))}."
            )
        places.append(canonical(place))
    return places


def _is_there(place: torch.device) -> bool:
    try:
        backend = torch.get_device_module(place)
    except RuntimeError:  # a kind of device that this torch has not
        return False
    return backend.is_available() and (place.index or 0) < backend.device_count()


def devices_of(model: Any) -> int:
    """How many devices Draft Devices gave a MODEL."""
    return 1 + len(model.get_additional_models_with_key(REPLICAS))
