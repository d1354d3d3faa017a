# SPDX-License-Identifier: GPL-3.0-or-later
"""A MODEL as teacher and, with LoRA layers on, as the student in training."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import copy_nested_dicts
from comfy.weight_adapter import LoRAAdapter
from comfy.weight_adapter.bypass import BypassInjectionManager
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...common.alpha import is_flow
from ..adapter import LAYERS, PROJECTION
from ..guidance import GuidanceInput, guidance_embedding, slow_entries
from ..linear import is_linear, weight_shape
from ..student_model import check_unguided
from ..time_embedding import add_guidance
from .checkpointing import checkpointing
from .distribution import TrainingDistribution
from .failures import saying_what_fails
from .teacher import Conditions, conditions_of
from .time_layer import Probes, time_layer_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Kinds that get a LoRA pair, beside linear layers."""


@dataclass(frozen=True)
class Prompts:
    """CONDITIONINGs of the prompts, and that of the negative prompt; None where a guider has its own."""

    positive: Iterable[list]
    negative: list | None


@dataclass(frozen=True)
class AdapterShape:
    """rank: of the LoRA on every layer. seed: of its random half."""

    guidance: GuidanceInput
    rank: int
    seed: int


class TrainableStudent:
    """``stages.Student`` on core's classes. The network is held once: the teacher is it without its LoRA
    layers, which are core's, in bypass mode.

    shape: of one latent. name: of the teacher, for messages. Raises NoUnconditional or UnsupportedTeacher.
    """

    def __init__(
        self,
        model: Any,
        prompts: Prompts,
        shape: Sequence[int],
        adapter: AdapterShape,
        name: str = "the model",
    ) -> None:
        check_unguided(model)
        self.model, self.guidance, self.shape, self.name = model, adapter.guidance, tuple(shape), name
        self.network: nn.Module = model.model.diffusion_model
        model.model.requires_grad_(False)  # the adapter alone is trained
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        self.device: torch.device = model.load_device
        self.dtype = model.model.get_dtype_inference()
        with saying_what_fails(self.name, self.shape):
            encoded = iter(prompts.positive)
            first = next(encoded)
            self.positive = conditions_of(model, itertools.chain([first], encoded), shape, "positive")
            self.first_of_two = conditions_of(model, [first], shape, "positive", rows=2)
            negatives = [] if prompts.negative is None else [prompts.negative]
            self.negative = conditions_of(model, negatives, shape, "negative")
            self.time_layer = time_layer_of(self.network, self._probes(), name)
        manager = BypassInjectionManager()
        self.parameters: Mapping[str, nn.Parameter] = {
            **new_loras(self.network, manager, adapter, self.device),
            PROJECTION: self._new_projection(),
        }
        (self.injection,) = manager.create_injections(model.model)
        self.guidance_hook: RemovableHandle | None = None

    def _probes(self) -> Probes:
        generator = torch.Generator().manual_seed(0)
        x, other_x = (torch.randn(1, *self.shape, generator=generator) for _ in range(2))
        sampling = self.model.get_model_object("model_sampling")
        sigma, other_sigma = (sampling.percent_to_sigma(part) for part in (0.5, 0.25))

        def predict(x: Tensor, sigma: float) -> Callable[[], Tensor]:
            return lambda: self._denoised(x, torch.tensor([float(sigma)]), self.positive[:1])

        return Probes(predict(x, sigma), predict(x, other_sigma), predict(other_x, sigma))

    def _new_projection(self) -> nn.Parameter:
        """C = 0: the student begins as the conditional teacher."""
        time_layer = self.network.get_submodule(self.time_layer)
        assert is_linear(time_layer)
        projection = nn.Parameter(
            torch.zeros(time_layer.in_features, self.guidance.width, device=self.device)
        )
        slow = slow_entries(self.guidance).to(self.device)
        projection.register_hook(lambda gradient: gradient * slow)
        return projection

    def distribution(
        self, scales: tuple[float, float], latents: Tensor | None = None
    ) -> TrainingDistribution:
        """latents: [n, ...] of pictures, as LATENTs hold them."""
        sampling = self.model.get_model_object("model_sampling")
        low, high = float(sampling.sigma_min), float(sampling.sigma_max)

        def level(time: float) -> float:
            return high if time >= 1 else min(max(float(sampling.percent_to_sigma(1 - time)), low), high)

        pictures = None
        if latents is not None:
            pictures = self.model.model.process_latent_in(latents.clone()).cpu().float()
        return TrainingDistribution(
            prompts=len(self.positive),
            shape=self.shape,
            scales=scales,
            level=level,
            flow=is_flow(sampling),
            latents=pictures,
            signals=self.guidance.signals,
        )

    def _options(self, sigma: Tensor) -> dict[str, Any]:
        return {
            **self.model.model_options.get("transformer_options", {}),
            "wrappers": copy_nested_dicts(self.model.wrappers),
            "sigmas": sigma,
            "cond_or_uncond": [0],
        }

    def _denoised(self, x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        x, sigma = x.to(self.device), sigma.to(self.device, torch.float32)
        half = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, self.dtype, enabled=half):
            arguments = comfy.samplers.cond_cat(conditions, self.device)
            options = self._options(sigma)
            return self.model.model.apply_model(x, sigma, transformer_options=options, **arguments).float()

    def _off(self) -> None:
        """The network is the teacher's."""
        self.injection.eject(self.model)
        if self.guidance_hook is not None:
            self.guidance_hook.remove()
            self.guidance_hook = None

    @torch.no_grad()
    def teacher(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        self._off()
        conditions = [self.positive[i] for i in prompt.tolist()] + self.negative * len(x)
        both = self._denoised(torch.cat([x, x]), torch.cat([sigma, sigma]), conditions).cpu()
        conditional, unconditional = both.chunk(2)
        return conditional, unconditional

    @contextlib.contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Inside, the network is the teacher's, and may be loaded with the patches of others."""
        self._off()
        try:
            yield
        finally:
            comfy.model_management.load_models_gpu([self.model], force_full_load=True)

    @torch.no_grad()
    def conditional(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """D(x, c) of the network without its adapter, on the CPU."""
        self._off()
        return self._denoised(x, sigma, [self.positive[i] for i in prompt.tolist()]).cpu()

    @torch.no_grad()
    def two_together(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, c) of the first prompt for two rows that the model is told are one batch, as samplers tell
        it.
        """
        self._off()
        return self._denoised(x, sigma, self.first_of_two).cpu()

    def student(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        """The adapter stays on for the backward pass, where checkpointed blocks run again."""
        self._off()
        embedding = guidance_embedding(self.guidance.milliweights(g), self.guidance).to(self.device)
        addition = nn.functional.linear(embedding, self.parameters[PROJECTION])
        self.injection.inject(self.model)
        self.guidance_hook = add_guidance(self.network, self.time_layer, addition, sigma)
        return self._denoised(x, sigma, [self.positive[i] for i in prompt.tolist()])

    @contextlib.contextmanager
    def training(self, checkpoint: bool) -> Iterator[None]:
        """Core's state of training, and gradient checkpointing of the network's blocks. Ends with the network
        as it was.
        """
        from comfy_extras.nodes_train import find_modules_at_depth

        # Blocks of Flux change their input in place, after their normalisation kept it for the backward pass.
        saving = (
            checkpointing(find_modules_at_depth(self.network, depth=2))
            if checkpoint
            else torch.autograd.graph.allow_mutation_on_saved_tensors()
        )
        self._off()  # the adapter wraps forwards too: put on last, it comes off first
        comfy.model_management.in_training = True
        try:
            with saving, self._off_at_the_end():
                yield
        finally:
            comfy.model_management.in_training = False

    @contextlib.contextmanager
    def _off_at_the_end(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._off()


def new_loras(
    network: nn.Module, manager: BypassInjectionManager, adapter: AdapterShape, device: torch.device
) -> dict[str, nn.Parameter]:
    """LoRA pairs on every linear layer and convolution without groups, handed to core's manager: they change
    nothing yet.
    """
    parameters: dict[str, nn.Parameter] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(adapter.seed % 2**63)
        for name, module in network.named_modules():
            if is_linear(module) or (isinstance(module, CONVOLUTIONS) and module.groups == 1):
                shape = weight_shape(module)
                rank = min(adapter.rank, shape[0], shape[1:].numel())
                pair = LoRAAdapter((), lora_weights(shape, rank)).to_train().to(device)
                manager.add_adapter(LAYERS + name, pair)
                for part in ("lora_up", "lora_down"):
                    weight = getattr(pair, part).weight
                    parameters[f"{LAYERS}{name}.{part}.weight"] = weight.requires_grad_(True)
    return parameters


def lora_weights(shape: Sequence[int], rank: int) -> tuple:
    """up [out, rank] zero, down [rank, in] random (Hu et al. 2021, section 4.1); alpha = rank, so that the
    pair counts once.

    Core starts the other way round, with up random: then the first updates of layers with many inputs are far
    larger than their weights.
    """
    up, down = torch.zeros(shape[0], rank), torch.empty(rank, torch.Size(shape[1:]).numel())
    nn.init.kaiming_uniform_(down, a=5**0.5)
    return up, down, float(rank), None, None, None
