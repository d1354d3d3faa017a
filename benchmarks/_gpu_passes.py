# SPDX-License-Identifier: GPL-3.0-or-later
"""What a drafted run does to latents outside its network: memory passes, launches and reads by the host, counted, not timed.

The counts are the same on every machine, and for every latent that is larger than everything else.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ._draft_subjects import sampling

ROOT = Path(__file__).resolve().parents[1]
NETWORK, AHEAD, SAMPLER = "network", "sampler, run ahead", "sampler"
PLACES = {"hindsight": "hindsight", "_guess": "guess", "_from_window": "verify and carry", "_learn": "learn", "_group": "batch",
          "_drafts": "drafts", "_dry_run": "plan"}
"""Functions of drafting/, and what the table calls them."""
FACTORIES = (torch.ops.aten.new_full, torch.ops.aten.zeros_like, torch.ops.aten.empty_like, torch.ops.aten.full_like)
"""Operations that take only the shape of their input."""


class Passes(TorchDispatchMode):
    """Per place of the code: latents read and written by operations on whole latents, launches, and values read by the host."""

    def __init__(self, latent: Tensor) -> None:
        super().__init__()
        self._bytes = latent.nbytes
        self.passes: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        place = where(sys._getframe(1))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.reads[place] += 1
        elif not func.is_view:
            self.launches[place] += 1
            read = () if func.overloadpacket in FACTORIES else (args, kwargs)
            tensors = [t for t in tree_leaves((read, result)) if isinstance(t, Tensor)]
            self.passes[place] += sum(t.nbytes for t in tensors if t.nbytes >= self._bytes) / self._bytes  # type: ignore[assignment]
        return result


def where(frame: FrameType | None) -> str:
    """Which part of a drafted run is executing."""
    sampler = ""
    while frame is not None:
        code = frame.f_code
        if code is stand_in_network.__code__:
            return NETWORK
        if code.co_filename.endswith("sampling.py"):
            sampler = SAMPLER
        elif code.co_name in PLACES and Path(code.co_filename).parent == ROOT / "drafting":
            return AHEAD if sampler and code.co_name == "_drafts" else PLACES[code.co_name]
        frame = frame.f_back
    return sampler or "other"


def stand_in_network(x: Tensor, sigma: Tensor) -> Tensor:
    """Smooth and not linear, so that drafts are off by little, as a network's are."""
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return x / (1 + s * s) + 0.1 * torch.tanh(x / (1 + s))


def count(shape: tuple[int, ...], sampler: str, steps: int, width: int) -> list[dict[str, Any]]:
    """A row for every place, means over the rounds of a verified run in batches, and their sum."""
    import comfy.samplers

    from ..drafting.replicas import DraftRefine
    from ..drafting.speculation import Report

    model_sampling = sampling()
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "karras", steps)
    reports: list[Report] = []
    drafted = DraftRefine(comfy.samplers.sampler_object(sampler), "verified", width, 0.02, on_report=reports.append)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    options = {"model_options": {"dizzydiff_devices": {"width": 0, "batch": True}}, "seed": 0}
    with torch.no_grad(), Passes(noise) as counted:
        drafted.sample(_Guider(model_sampling), sigmas, options, None, noise, torch.zeros_like(noise), None, True)
    kinds = {"passes": counted.passes, "launches": counted.launches, "host_reads": counted.reads}
    rounds = len(reports[0].rounds)
    common = {"sampler": sampler, "steps": steps, "width": width, "rounds": rounds}
    places = [place for place in (*PLACES.values(), AHEAD, SAMPLER, "other") if counted.launches[place]]
    rows = [{"place": place, **{kind: counter[place] / rounds for kind, counter in kinds.items()}} for place in places]
    outside = [row for row in rows if row["place"] != SAMPLER]
    total = {"place": "all but the sampler itself", **{kind: sum(row[kind] for row in outside) for kind in kinds}}
    return [{**common, **row} for row in (*rows, total)]


class _Guider:
    """Plays the guider's part for ComfyUI's KSAMPLER, around the stand-in network."""

    def __init__(self, model_sampling: Any) -> None:
        self.inner_model = SimpleNamespace(model_sampling=model_sampling)
        self.model_patcher = SimpleNamespace(get_model_object=lambda name: model_sampling, model=self)
        self.conds: dict[str, list] = {}
        self.cfg = 1.0

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Tensor:
        return stand_in_network(x, sigma)
