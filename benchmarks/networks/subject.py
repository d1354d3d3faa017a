# SPDX-License-Identifier: GPL-3.0-or-later
"""MODELs of the small networks, with prompts and latents: what a benchmark or test samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._sampling import cfg_guider, draw, levels
from .description import Network

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Subject:
    """A MODEL and what it is asked: CONDITIONING and the LATENT of a number of rows."""

    network: Network
    model: Any
    positive: list[list[Any]]
    negative: list[list[Any]]

    @property
    def name(self) -> str:
        return self.network.name

    def latent(self, rows: int = 1) -> dict[str, Any]:
        """LATENT: a tensor [rows, ...], nested where it has several parts; and its noise mask if any."""
        from comfy.nested_tensor import NestedTensor

        parts = self.network.latent_rows(rows)
        latent: dict[str, Any] = {"samples": parts[0] if len(parts) == 1 else NestedTensor(parts)}
        if (noise_mask := self.network.noise_mask(rows)) is not None:
            latent["noise_mask"] = noise_mask
        return latent


def make(network: Network, seed: int = 0) -> Subject:
    """The network with random weights as a MODEL that can be loaded once more for another device; its outputs
    are near unit RMS where its last layer decides that.
    """
    raw = Subject(network, patcher(network, seed), network.prompt(0), network.prompt(1))
    layer, rms = output_of(raw)
    scaled = replace(raw, model=patcher(network, seed, layer, 1 / rms))
    # What some networks give is more than what their last layer does.
    return scaled if abs(output_of(scaled)[1] - 1) < 0.1 else replace(raw, model=patcher(network, seed))


def patcher(network: Network, seed: int = 0, layer: str = "", gain: float = 1.0) -> Any:
    """A ModelPatcher in fp32 on the CPU; it names this function as its recipe, as core's loaders do.

    ``gain`` is put on the weights of ``layer``, where one is named.
    """
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, network.family)(dict(network.config))
    usual = config.unet_extra_config.keys() & network.config.keys()
    config.unet_config.update({key: network.config[key] for key in usual})  # ours over its usual size's
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False), uninitialised_is_nan():
        model = config.get_model(dict(network.weights()), "", device=CPU)
        randomise(model.diffusion_model, seed)
        model.eval()
    made = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    if layer:
        scale(made, layer, gain)
    made.cached_patcher_init = (patcher, (network, seed, layer, gain))
    return made


@torch.no_grad()
def scale(model: Any, layer: str, gain: float) -> None:
    for parameter in model.model.diffusion_model.get_submodule(layer).parameters(recurse=False):
        parameter.mul_(gain)


def output_of(subject: Subject) -> tuple[str, float]:
    """The layer that the network calls last, and the RMS of what it gives at the highest noise level."""
    import comfy.samplers

    network = subject.model.model.diffusion_model
    called: list[str] = []
    given: list[Tensor] = []

    def note(name: str) -> Any:
        return lambda *_: called.append(name)

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        given.extend(output if isinstance(output, list | tuple) else [output])

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in network.named_modules()
        if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    ]
    hooks.append(network.register_forward_hook(keep))
    guider = cfg_guider(subject.model, subject.positive, subject.negative, subject.network.cfgs[0])
    sigmas = levels(subject.model, "euler", 1)
    draw(guider, comfy.samplers.sampler_object("euler"), sigmas, subject.latent(1))
    for hook in hooks:
        hook.remove()
    return called[-1], float(torch.cat([part.flatten() for part in given]).square().mean().sqrt())


@contextmanager
def uninitialised_is_nan() -> Iterator[None]:
    """Makes ``torch.empty`` give NaN, not what lay in memory, which would differ between two builds."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights of which every one matters and that keep activations near their size, layer by layer; and
    buffers that would come from a checkpoint.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    for name, parameter in sorted(module.named_parameters()):
        if parameter.is_floating_point():
            owner = module.get_submodule(name.rpartition(".")[0])
            parameter.data = _weight(name, parameter, owner, generator).to(parameter.dtype)
    for _, buffer in sorted(module.named_buffers()):
        if buffer.is_floating_point() and not buffer.isfinite().all():
            buffer.data = 0.3 * torch.randn(buffer.shape, generator=generator)


def _weight(name: str, like: Tensor, owner: torch.nn.Module, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator)
    last = name.rpartition(".")[2]
    if "bias" in last and like.ndim <= 1:
        return 0.05 * drawn
    if last in ("weight", "scale", "gamma") and like.ndim <= 1:
        return 1 + 0.1 * drawn
    if last == "weight":
        return drawn * (0.5 if isinstance(owner, torch.nn.Embedding) else 1 / math.sqrt(like[0].numel()))
    return 0.3 * drawn
