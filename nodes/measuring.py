# SPDX-License-Identifier: GPL-3.0-or-later
"""Measuring and sampling, with progress at the node, for the nodes of stability grids."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch

from ..common.messages import Say, both, inform
from ..common.pictures import image_of, picture_of_text
from ..drafting.backends import RowsOnDevices
from ..drafting.devices import devices_of
from ..stability.measured import Measured, measured_once, scheduled_grids
from ..stability.profile import Effort, Progress
from ..stability.store import Store
from ..stability.subject import Subject
from ..stability.watching import unwatched, unwatched_guider
from .cfg import warn_of_guidance, without_warning
from .notice import show_at_node
from .stability_inputs import DEFAULT_SOLVER, PLOTTED_STEPS


def measure(subject: Subject, effort: Effort, *, again: bool) -> Measured:
    """From ComfyUI's user folder, or now, with progress, until interrupted; on the devices that Draft Devices
    gave the model.
    """
    subject = replace(
        subject,
        model=unwatched(without_warning(subject.model)),
        guider=None if subject.guider is None else unwatched_guider(subject.guider),
        devices=devices_of(subject.model),
        predict=RowsOnDevices(both(inform, show_at_node)),
    )
    measured = measured_once(subject, effort, store(), with_progress(), again=again)
    both(inform, show_at_node)(measured.origin)
    return measured


def store() -> Store:
    """Of profiles, in ComfyUI's user folder."""
    return Store(Path(folder_paths.get_user_directory()) / "dizzydiff" / "stability")


def with_progress() -> Progress:
    """Shows calls made of calls in all at the node, until interrupted."""
    bar = comfy.utils.ProgressBar(1)

    def progress(made: int, of: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(made, of)

    return progress


def picture_of(measured: Measured) -> torch.Tensor:
    """The plot [1, H, W, 3], or why there is none."""
    from ..stability.plot import draw

    if measured.linearized is None:
        return image_of(picture_of_text(measured.origin))
    chosen = {"dizzydiff": measured.sigmas(PLOTTED_STEPS, 1.0, DEFAULT_SOLVER)}
    core = scheduled_grids(measured.sampling, PLOTTED_STEPS)
    chosen |= {name: core[name] for name in ("karras", "simple") if name in core}
    return image_of(draw(measured.linearized, DEFAULT_SOLVER, chosen))


def sample(subject: Subject, seed: int, sampler: Any, sigmas: torch.Tensor, say: Say) -> dict:
    """The LATENT that core's own nodes give."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustom, SamplerCustomAdvanced

    if subject.guider is not None:
        noise = Noise_RandomNoise(seed)
        output = SamplerCustomAdvanced.execute(noise, subject.guider, sampler, sigmas, subject.latent)
        return output.result[0]
    cfg, positive, negative = subject.cfg, subject.positive, subject.negative
    model = warn_of_guidance(subject.model, cfg, positive, say)
    output = SamplerCustom.execute(
        model, True, seed, cfg, positive, negative, sampler, sigmas, subject.latent
    )
    return output.result[0]
