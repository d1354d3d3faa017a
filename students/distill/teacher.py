# SPDX-License-Identifier: GPL-3.0-or-later
"""What distillation asks of the MODEL in the graph: its conditions, its noise levels, a copy to train on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from comfy.sampler_helpers import convert_cond
from torch import Tensor

Conditions = list[dict[str, Any]]
"""The arguments of a network's forward, one row each."""


def versions() -> dict[str, str]:
    """Of what a student is trained with."""
    from comfyui_version import __version__ as comfyui

    return {"comfyui": comfyui, "torch": torch.__version__}


def diffusers_names(model: Any) -> dict[str, str]:
    """Key in diffusers -> key in core of a UNet's tensors; empty for other networks."""
    return comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)


def trainable(model: Any) -> Any:
    """A clone; with weights of its own where ComfyUI loaded them in inference mode, which nothing can be
    trained through.
    """
    inference = any(parameter.is_inference() for parameter in model.model.parameters())
    return model.clone(force_deepcopy=True) if inference else model.clone()


@torch.no_grad()
def conditions_of(
    model: Any, encoded: Iterable[list], shape: Sequence[int], kind: str, rows: int = 1
) -> Conditions:
    """Core's model conditions of each CONDITIONING for ``rows`` latents of ``shape``; kind: "positive" or
    "negative".
    """
    device, noise = model.load_device, torch.zeros(rows, *shape, device=model.load_device)
    out = []
    for conditioning in encoded:
        (cond,) = comfy.samplers.encode_model_conds(
            model.model.extra_conds, convert_cond(_copied(conditioning[:1])), noise, device, kind, seed=0
        )
        out.append(
            {
                key: value.process_cond(batch_size=rows, area=None, device=device)
                for key, value in cond["model_conds"].items()
            }
        )
    return out


def _copied(conditioning: list) -> list:
    """With tensors of its own: the user's were made in inference mode."""

    def copied(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    return [
        [copied(value), {key: copied(each) for key, each in options.items()}]
        for value, options in conditioning
    ]


def noise_levels(sampling: Any, stage_two_sigmas: Tensor | None, first_steps: int) -> Callable[[int], Tensor]:
    """n -> the n + 1 sigmas of n steps, falling to 0.

    Core's ``simple``, or ``stage_two_sigmas`` [first_steps + 1], halved for fewer steps and refined for more.
    """
    if stage_two_sigmas is None:
        return lambda n: comfy.samplers.calculate_sigmas(sampling, "simple", n)
    grid = stage_two_sigmas.float().cpu()

    def levels(n: int) -> Tensor:
        if n <= first_steps:
            return grid[:: first_steps // n]
        return refined(sampling, grid, n // first_steps)

    return levels


def refined(sampling: Any, grid: Tensor, parts: int) -> Tensor:
    """Each interval of ``grid`` divided into ``parts`` of the same length in the model's own time."""
    times = torch.tensor([float(sampling.timestep(sigma)) if sigma > 0 else 0.0 for sigma in grid])
    fine = torch.cat(
        [torch.linspace(float(a), float(b), parts + 1)[:-1] for a, b in itertools.pairwise(times)]
    )
    between = torch.tensor([float(sampling.sigma(t)) for t in fine])
    between[::parts] = grid[:-1]
    return torch.cat([between, grid[-1:]])
