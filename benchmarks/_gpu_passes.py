# SPDX-License-Identifier: GPL-3.0-or-later
"""What a drafted run does to latents outside its network: memory passes, launches and waits of the host,
counted, not timed.

Counted on a device that is not there (``devtools.pretend_device``): the counts are the same on every machine,
and for every latent that is larger than everything else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..common.sampler_trace import trace
from ..devtools.pretend_device import DEVICE, Away, Ledger, booked
from ..drafting.policies import Mode
from ._draft_subjects import sampling
from ._gpu_time import timed

ROOT = Path(__file__).resolve().parents[1]
NETWORK, SAMPLER, END = "network", "sampler", "once a picture"
TOTAL, UNDRAFTED = "all but the sampler itself", "the sampler, undrafted"
ROOMS = {ROOT / "drafting", ROOT / "common"}
PLACES = {
    "states": "drafts",
    "take": "drafts",
    "statistics": "statistics",
    "_from_window": "verify and carry",
    "_group": "batch",
    "_add": SAMPLER,
    "trace": END,
    "own_noise": END,
    "report": END,
}
"""Functions of drafting/ and common/, and what the table calls them; the noises that drafts draw are those
that the sampler would have drawn.
"""


def where(frame: FrameType | None) -> str:
    """Which part of a drafted run is executing."""
    sampler = ""
    while frame is not None:
        code = frame.f_code
        if code is stand_in_network.__code__:
            return NETWORK
        if Path(code.co_filename).parent.name in ("k_diffusion", "extra_samplers", "comfy"):
            sampler = SAMPLER
        elif code.co_name in PLACES and ROOMS & set(Path(code.co_filename).parents):
            return PLACES[code.co_name]
        frame = frame.f_back
    return sampler or "other"


def stand_in_network(x: Tensor, sigma: Tensor) -> Tensor:
    """Smooth and not linear, so that drafts are off by little, as a network's are."""
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return x / (1 + s * s) + 0.1 * torch.tanh(x / (1 + s))


def count(
    shape: tuple[int, ...], sampler: str, steps: int, width: int, mode: Mode = "verified"
) -> list[dict[str, Any]]:
    """A row for every place, means over the rounds of a run in batches; their sum; and the same run
    undrafted, over as many rounds.
    """
    rounds, drafted = run(shape, sampler, steps, width, mode)
    plain = run(shape, sampler, steps, 1, mode)[1]
    common = {"sampler": sampler, "steps": steps, "width": width, "mode": mode, "rounds": rounds}
    rows = [
        {"place": place, **means(drafted, [place], rounds)}
        for place in dict.fromkeys((*PLACES.values(), SAMPLER, "other"))
        if drafted.launches[place]
    ]
    rows.append({"place": TOTAL, **means(drafted, set(drafted.launches) - {NETWORK, SAMPLER, END}, rounds)})
    rows.append({"place": UNDRAFTED, **means(plain, [SAMPLER], rounds)})
    return [{**common, **row} for row in rows]


def means(ledger: Ledger, places: Iterable[str], of: int) -> dict[str, float]:
    """What was booked at some places, over the number of rounds, calls or updates."""
    kinds = {
        "passes": ledger.passes,
        "launches": ledger.launches,
        "waits": ledger.waits,
        "host_operations": ledger.host_operations,
    }
    return {kind: sum(counter[place] for place in places) / of for kind, counter in kinds.items()}


def run(
    shape: tuple[int, ...], sampler: str, steps: int, width: int, mode: Mode, frozen: bool = False
) -> tuple[int, Ledger]:
    """Rounds of a run on the pretended device, and what was booked; a width of 1 is the plain sampler.

    It is the second run, of a graph that was found fit for drafts in the first.
    """
    import comfy.samplers

    from ..drafting.report import Report
    from ..drafting.sampler import DraftRefine, Settings
    from ..drafting.verdicts import Verdicts

    model_sampling = sampling()
    reports: list[Report] = []
    inner = comfy.samplers.sampler_object(sampler)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if "noise_sampler" in inspect.signature(inner.sampler_function).parameters:
        generator = torch.Generator().manual_seed(1)
        options = {
            **inner.extra_options,
            "noise_sampler": lambda *_: torch.randn(shape, generator=generator).to(DEVICE, non_blocking=True),
        }
        inner = comfy.samplers.KSAMPLER(inner.sampler_function, options, inner.inpaint_options)
    settings = Settings(mode, width, 0.02, "frozen" if frozen else "extrapolated")
    method = DraftRefine(inner, settings, on_report=reports.append) if width > 1 else inner
    wish = {"width": 0, "batch": True, "verdicts": Verdicts()}
    guider = _Guider(model_sampling)
    for _ in range(2):
        extra_args = {"model_options": {"dizzydiff_devices": wish}, "seed": None}
        with torch.no_grad(), booked(where, noise.nbytes) as ledger:
            x, sigmas = Away(noise), Away(comfy.samplers.calculate_sigmas(model_sampling, "karras", steps))
            method.sample(guider, sigmas, extra_args, None, x, torch.zeros_like(x), None, True)
    return len(reports[-1].rounds) if reports else steps, ledger


def trace_seconds(sampler: str, steps: int, repeats: int) -> float:
    """What it takes the host to trace a sampler, once a picture."""
    import comfy.samplers

    from ..drafting.backends.base import Backend, Request
    from ..drafting.sampler import SamplerCall, stand_in

    inner, model_sampling = comfy.samplers.sampler_object(sampler), sampling()
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "karras", steps)
    model = comfy.samplers.KSamplerX0Inpaint(_Guider(model_sampling), sigmas)
    call = SamplerCall(inner.sampler_function, {"model_options": {}}, inner.extra_options, disable=True)
    predicted = functools.partial(stand_in, model, Backend(Request(model, {}), 4))
    return timed(lambda: trace(call, predicted, sigmas, 4), torch.device("cpu"), repeats).wall


class _Guider:
    """Plays the guider's part for ComfyUI's KSAMPLER, around the stand-in network."""

    def __init__(self, model_sampling: Any) -> None:
        self.inner_model = SimpleNamespace(model_sampling=model_sampling)
        self.model_patcher = SimpleNamespace(get_model_object=lambda name: model_sampling, model=self)
        self.conds: dict[str, list] = {}
        self.cfg = 1.0

    def __call__(
        self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        denoised = stand_in_network(x, sigma)
        for hook in model_options.get("sampler_post_cfg_function", []):
            denoised = hook({"denoised": denoised, "uncond_denoised": denoised, "input": x})
        return denoised
