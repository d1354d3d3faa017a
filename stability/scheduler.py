# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler ``dizzydiff`` of every sampler node: the sigmas that were measured of the MODEL it samples.

ComfyUI hands a scheduler the model's noise levels and nothing else, so what was measured travels with these.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import comfy.samplers
from torch import Tensor, nn

from ..common.messages import Say
from .measured import FALLBACK, SCHEDULER, Measured, fallback_grid
from .solvers import DPMPP_2M

MEASURED = "dizzydiff_measured"
"""Attribute of noise levels."""
NOTHING_MEASURED = (
    f"Nothing was measured of this model, so the scheduler {SCHEDULER} gives core's {FALLBACK} sigmas. "
    "Connect the output model of Measure Stability."
)


def with_measured(model: Any, measured: Measured) -> Any:
    """The MODEL, with what was measured of it beside its noise levels."""
    model = model.clone()
    sampling = copy.copy(model.get_model_object("model_sampling"))
    if isinstance(sampling, nn.Module):  # else a change of one would be the other's
        sampling._buffers = dict(sampling._buffers)
    setattr(sampling, MEASURED, measured)
    model.add_object_patch("model_sampling", sampling)
    return model


def sigmas(sampling: Any, steps: int, say: Say) -> Tensor:
    """SIGMAS [steps + 1] for noise levels. A scheduler is not told the sampler: they are those of dpmpp_2m,
    which most samplers resemble most. Core's simple ones, with a word, where nothing was measured.
    """
    measured: Measured | None = getattr(sampling, MEASURED, None)
    if measured is not None and measured.linearized is not None:
        return measured.sigmas(steps, 1.0, DPMPP_2M, say=say)
    say(NOTHING_MEASURED if measured is None else measured.origin)
    return fallback_grid(sampling, steps).float()


def register(say: Say) -> None:
    """Into the lists of ComfyUI, in which other packs register theirs; once, however often it is called."""
    handler = functools.partial(sigmas, say=say)
    comfy.samplers.SCHEDULER_HANDLERS[SCHEDULER] = comfy.samplers.SchedulerHandler(handler)
    if SCHEDULER not in comfy.samplers.SCHEDULER_NAMES:
        comfy.samplers.SCHEDULER_NAMES.append(SCHEDULER)
