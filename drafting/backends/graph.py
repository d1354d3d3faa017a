# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in the graph around a sampler's model, found by looking: who patched it, what that holds,
which it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.multigpu
import comfy.samplers
import torch
from torch import Tensor

from ..cluster.pool import Pool
from ..devices import DEVICES
from ..object_state import ObjectState, last_part
from ..verdicts import Verdicts

POST_CFG = "sampler_post_cfg_function"
CLONES, THREAD_POOL = "multigpu_clones", "multigpu_thread_pool"
MULTIGPU = (CLONES, THREAD_POOL)
"""Core's keys in ``model_options`` for replicas, by device, and for its threads."""
NOT_PATCHES = (*MULTIGPU, "multigpu_options", DEVICES, "denoise_mask_function", "sample_sigmas")
CLOSED = (
    comfy.model_patcher.ModelPatcher,
    comfy.model_base.BaseModel,
    comfy.multigpu.MultiGPUThreadPool,
    Pool,
    Verdicts,
)
SETTLING_CALLS = 2
"""Calls in which something may be filled for the first time. What is filled in more grows with every call."""
PACK = __package__.rpartition(".drafting")[0]
OURS = tuple(f"{PACK}.{room}." for room in ("students", "nodes", "drafting"))
"""The pack's own patches answer each row by itself, and keep nothing."""


class Watch:
    """Looks, after every round, whether anything in the graph keeps something from call to call."""

    def __init__(self, roots: list[Any], conds: Any, network: Any, but: list[Any]) -> None:
        self._roots, self._conds, self._but = roots, conds, but
        self._networks = [network] if isinstance(network, torch.nn.Module) else []
        self._first = self._newest = self._state()
        self._fills = 0
        self.settling = False
        """Something was filled in the last round: it is seen once more before it is trusted."""

    def look(self) -> str | None:
        """Who kept something since the last look. None: nobody."""
        now = self._state()
        change = self._newest.change(now)
        self.settling = change.filled is not None
        self._fills += self.settling
        self._newest = now
        return change.kept or (change.filled if self._fills > SETTLING_CALLS else None)

    def restore(self) -> None:
        """Everything as it was before the first call."""
        self._first.restore()

    def _state(self) -> ObjectState:
        return ObjectState(
            self._roots, constant=[self._conds], closed=CLOSED, but=self._but, networks=self._networks
        )


def watch(model: Any, options: dict[str, Any], but: list[Any]) -> Watch:
    """Of what is reachable from the guider, its conditioning and the options.

    model: the sampler's; but: hooks that are the sampler's own, which may remember.
    """
    guider = getattr(model, "inner_model", None)
    roots = [options, _object_patches(guider), model if guider is None else guider]
    # What a bare network writes into itself is its own affair; with patches, it may be theirs.
    network = getattr(getattr(guider, "inner_model", None), "diffusion_model", None)
    network = network if _patches(model, options) else None
    return Watch(roots, getattr(guider, "conds", None), network, but)


def attached(options: Any, depth: int = 8) -> Iterator[Any]:
    """Callables and objects that others put into the options, however nested; not the pack's own."""
    if isinstance(options, dict):
        for key, value in options.items():
            if key not in NOT_PATCHES:
                yield from attached(value, depth - 1)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from attached(value, depth - 1)
    elif depth >= 0 and _is_patch(options) and not _module(options).startswith(OURS):
        yield options


def _object_patches(guider: Any) -> dict[str, Any]:
    """What replaces parts of the model, by name; not its noise levels, which are asked for by themselves."""
    patches = getattr(getattr(guider, "model_patcher", None), "object_patches", {})
    return {name: patch for name, patch in patches.items() if name != "model_sampling"}


def _patches(model: Any, options: dict[str, Any]) -> list[Any]:
    """All that others put on the model: by its options, or in place of its parts."""
    guider = getattr(model, "inner_model", None)
    return [*attached(options), *attached(_object_patches(guider))]


def _is_patch(value: Any) -> bool:
    return (callable(value) or hasattr(value, "__dict__")) and not isinstance(value, Tensor)


def _module(value: Any) -> str:
    return getattr(value, "__module__", None) or type(value).__module__


def name_of(value: Any) -> str:
    """What a user may know a patch by."""
    own = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{own.partition('.<locals>')[0]} ({last_part(_module(value))})"


def foreign(model: Any, options: dict[str, Any]) -> str | None:
    """Somebody's patch, hook or guider that need not treat the rows of a batch alike. None: only core's
    own.
    """
    if patches := _patches(model, options):
        return name_of(patches[0])
    guider, plain = getattr(model, "inner_model", None), comfy.samplers.CFGGuider
    if not isinstance(model, comfy.samplers.KSamplerX0Inpaint) or guider is None:
        return name_of(model)
    methods = () if _module(guider).startswith(PACK) else ("__call__", "outer_predict_noise", "predict_noise")
    if any(getattr(type(guider), method, None) is not getattr(plain, method) for method in methods):
        return name_of(type(guider))
    if any("hooks" in condition for group in guider.conds.values() for condition in group):
        return "a hook in the conditioning"
    return None


def active_conditions(model: Any, sigma: Tensor) -> tuple[bool, ...]:
    """Which conditions of the sampler's model, and which of their ControlNets, take part at sigma, compared
    as core compares: a tensor in the latent's precision with the numbers of a range.
    """

    def within(start: float | None, end: float | None) -> bool:
        above, below = start is not None and sigma > start, end is not None and sigma < end
        return not (above or below)

    seen = []
    for conditions in model.inner_model.conds.values():
        for condition in conditions:
            seen.append(within(condition.get("timestep_start"), condition.get("timestep_end")))
            control = condition.get("control")
            while control is not None:
                seen.append(within(*(control.timestep_range or (None, None))))
                control = control.previous_controlnet
    return tuple(bool(each) for each in seen)


def same_conditions(model: Any, sigmas: Iterable[float]) -> bool:
    """Whether the same conditions take part at all of these noise levels."""
    dtype = model.sigmas.dtype
    return len({active_conditions(model, torch.tensor(each, dtype=dtype)) for each in sigmas}) == 1


def holder_of_network(model: Any, options: dict[str, Any]) -> str | None:
    """Who refers to the network of the main device, which a replica does not run."""
    guider = getattr(model, "inner_model", None)
    network = getattr(getattr(guider, "inner_model", None), "diffusion_model", None)
    if not isinstance(network, torch.nn.Module):
        return None
    patches = _patches(model, options)
    return ObjectState(patches, closed=CLOSED).owner_of(network.modules()) if patches else None


def identity(backend: type, model: Any, options: dict[str, Any], x: Tensor) -> tuple[Hashable, object]:
    """What a verdict is about, and the objects it names, which must live as long as it does."""
    guider = getattr(model, "inner_model", None)
    patches = _patches(model, options)
    conditions = getattr(guider, "conds", {})
    key = (
        backend.__name__,
        type(guider),
        type(model),
        getattr(guider, "cfg", None) == 1.0,
        tuple(x.shape),
        x.dtype,
        getattr(getattr(guider, "model_patcher", None), "patches_uuid", None),
        # An object that is copied for every picture is known by its class.
        tuple(id(patch) if callable(patch) else type(patch) for patch in patches),
        repr([sorted(map(str, condition)) for group in conditions.values() for condition in group]),
    )
    return key, patches
