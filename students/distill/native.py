# SPDX-License-Identifier: GPL-3.0-or-later
"""Distillation's one meeting with ComfyUI: adapters trained on a MODEL, and MODELs made of a teacher and an
adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import comfy.utils
import torch
import torch.utils.checkpoint
from comfy.patcher_extension import WrappersMP, copy_nested_dicts
from comfy.sampler_helpers import convert_cond
from comfy.weight_adapter import LoRAAdapter
from comfy.weight_adapter.bypass import BypassInjectionManager
from torch import Tensor, nn

from ..guidance import GuidanceInput, guidance_embedding, scales_tensor, slow_entries
from .adapter import LAYERS, PROJECTION, WIDTH, Adapter
from .errors import NotEnoughMemory, NoUnconditional, UnsupportedTeacher, WrongTeacher
from .states import World

TIME_LAYERS = (
    "time_embed.0",
    "time_in.in_layer",
    "t_embedder.mlp.0",
    "time_embedding.0",
    "time_embedding.linear_1",
    "t_embedder.linear_1",
    "adaln_single.emb.timestep_embedder.linear_1",
)
"""First layer behind the embedding of time: UNets, Flux, SD3 and Lumina, Wan, and others by the names of
their classes in core.
"""
CONDITION, KEY = "dizzydiff_milliweights", "dizzydiff_guidance"
SAMPLED_VALUES = 64
MARGIN = 1.25
"""Of the memory estimate, for what the forward pass holds for a moment."""
Conditions = list[dict[str, Any]]


def versions() -> dict[str, str]:
    """Of what a student is trained with."""
    from comfyui_version import __version__ as comfyui

    return {"comfyui": comfyui, "torch": torch.__version__}


def diffusers_names(patcher: Any) -> dict[str, str]:
    """Key in diffusers -> key in core of a UNet's tensors; empty for other networks."""
    return comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config)


def trainable(patcher: Any) -> Any:
    """The MODEL, loaded again where ComfyUI loaded it in inference mode: such tensors cannot be trained
    through.
    """
    if any(parameter.is_inference() for parameter in patcher.model.parameters()):
        return patcher.clone(force_deepcopy=True)
    return patcher.clone()


def fingerprint(patcher: Any) -> str:
    """Which weights a MODEL has, without the patches on top: 16 hexadecimal digits of names, shapes and the
    first values.
    """
    digest = hashlib.sha256()
    for key, value in sorted(patcher.model.diffusion_model.state_dict().items()):
        backup = patcher.backup.get(LAYERS + key)
        values = (value if backup is None else backup.weight).flatten()[:SAMPLED_VALUES]
        digest.update(f"{key} {list(value.shape)}".encode())
        digest.update(values.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def time_layer_of(network: nn.Module, name: str) -> str:
    """Raises UnsupportedTeacher."""
    modules = dict(network.named_modules())
    for layer in TIME_LAYERS:
        if isinstance(modules.get(layer), nn.Linear):
            return layer
    raise UnsupportedTeacher(
        f"{name}: no time embedding of a known kind in {type(network).__name__}. Expected a UNet of Stable "
        "Diffusion's kind, or a transformer such as Flux, SD3, Lumina or Wan."
    )


@contextlib.contextmanager
def guided_time(network: nn.Module, layer: str, addition: Tensor) -> Iterator[None]:
    """For the calls inside, the time layer's input is t_emb + C e(w): section 3.1. addition: [B, F]."""
    hook = network.get_submodule(layer).register_forward_pre_hook(
        lambda module, inputs: (inputs[0] + addition.to(inputs[0]), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, run again in the backward pass instead of keeping what it computed; on copies, since
    blocks may change their input.
    """

    def on_copies(*args: Any, **kwargs: Any) -> Any:
        copies = [value.clone() if isinstance(value, Tensor) else value for value in args]
        return forward(
            *copies,
            **{key: value.clone() if isinstance(value, Tensor) else value for key, value in kwargs.items()},
        )

    return lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(
        on_copies, *args, use_reentrant=False, **kwargs
    )


def refuse_guided(patcher: Any) -> None:
    """Raise NoUnconditional for a model that takes its guidance as an input."""
    config = patcher.model.model_config
    guided = "guidance" in vars(config) and config.guidance is not None
    if (
        guided
        or config.unet_config.get("guidance_embed")
        or KEY in patcher.wrappers.get(WrappersMP.APPLY_MODEL, {})
    ):
        raise NoUnconditional(
            "This model takes the guidance scale as an input already: it is a student. Expected a teacher "
            "to be sampled "
            "with CFG."
        )


def conditions_of(patcher: Any, encoded: Iterable[list], shape: Sequence[int], kind: str) -> Conditions:
    """Core's model conditions of each CONDITIONING, one row each, as the network's forward takes them."""
    device, noise = patcher.load_device, torch.zeros(1, *shape, device=patcher.load_device)
    out = []
    for conditioning in encoded:
        values = [
            [
                value.clone() if isinstance(value, Tensor) else value,
                {key: each.clone() if isinstance(each, Tensor) else each for key, each in options.items()},
            ]
            for value, options in conditioning[:1]
        ]
        (cond,) = comfy.samplers.encode_model_conds(
            patcher.model.extra_conds, convert_cond(values), noise, device, kind, seed=0
        )
        out.append(
            {
                key: value.process_cond(batch_size=1, area=None, device=device)
                for key, value in cond["model_conds"].items()
            }
        )
    return out


class Distilled:
    """A MODEL as teacher and, with its adapter on, as student: ``training.Student`` on core's classes.

    The network is held once. Inside ``loaded`` it is on its device, and its LoRA layers are core's, in bypass
    mode.
    """

    def __init__(
        self,
        patcher: Any,
        positive: Iterable[list],
        negative: list,
        shape: Sequence[int],
        guidance: GuidanceInput,
        rank: int,
        seed: int,
        name: str = "the model",
    ) -> None:
        refuse_guided(patcher)
        self.patcher, self.guidance, self.shape, self.name = patcher, guidance, tuple(shape), name
        self.network: nn.Module = patcher.model.diffusion_model
        self.time_layer = time_layer_of(self.network, name)
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        self.device: torch.device = patcher.load_device
        self.positive = conditions_of(patcher, positive, shape, "positive")
        (self.negative,) = conditions_of(patcher, [negative], shape, "negative")
        self.parameters: Mapping[str, nn.Parameter] = self._new_parameters(rank, seed)
        self.before: dict[str, Tensor] = {}
        self.dtype = patcher.model.get_dtype_inference()

    def _new_parameters(self, rank: int, seed: int) -> dict[str, nn.Parameter]:
        """LoRA pairs on every linear layer and convolution, and C: an adapter that changes nothing yet."""
        parameters: dict[str, nn.Parameter] = {}
        self.manager = BypassInjectionManager()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            for name, module in self.network.named_modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    least = min(rank, module.weight.shape[0], module.weight[0].numel())
                    lora = (
                        LoRAAdapter((), _lora_weights(module.weight.shape, least)).to_train().to(self.device)
                    )
                    self.manager.add_adapter(LAYERS + name, lora)
                    for part in ("lora_up", "lora_down"):
                        parameters[f"{LAYERS}{name}.{part}.weight"] = getattr(
                            lora, part
                        ).weight.requires_grad_(True)
        time_layer = self.network.get_submodule(self.time_layer)
        assert isinstance(time_layer, nn.Linear)
        parameters[PROJECTION] = nn.Parameter(torch.zeros(time_layer.in_features, WIDTH, device=self.device))
        slow = slow_entries(self.guidance).to(self.device)
        parameters[PROJECTION].register_hook(lambda gradient: gradient * slow)
        (self.injection,) = self.manager.create_injections(self.patcher.model)
        return parameters

    def world(self, scales: tuple[float, float], latents: Tensor | None = None) -> World:
        """latents: [n, ...] of pictures, as LATENTs hold them."""
        sampling = self.patcher.get_model_object("model_sampling")
        low, high = float(sampling.sigma_min), float(sampling.sigma_max)

        def level(time: float) -> float:
            return high if time >= 1 else min(max(float(sampling.percent_to_sigma(1 - time)), low), high)

        pictures = (
            None if latents is None else self.patcher.model.process_latent_in(latents.clone()).cpu().float()
        )
        return World(
            len(self.positive),
            self.shape,
            scales,
            level,
            isinstance(sampling, comfy.model_sampling.CONST),
            pictures,
        )

    def remember(self, parameters: Mapping[str, Tensor]) -> None:
        self.before = dict(parameters)

    def _options(self, sigma: Tensor) -> dict[str, Any]:
        options = self.patcher.model_options.get("transformer_options", {})
        return {
            **options,
            "wrappers": copy_nested_dicts(self.patcher.wrappers),
            "sigmas": sigma,
            "cond_or_uncond": [0],
        }

    def _denoised(self, x: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        x, sigma = x.to(self.device), sigma.to(self.device, torch.float32)
        with torch.autocast(
            self.device.type, self.dtype, enabled=self.dtype in (torch.bfloat16, torch.float16)
        ):
            return self.patcher.model.apply_model(
                x,
                sigma,
                transformer_options=self._options(sigma),
                **comfy.samplers.cond_cat(conditions, self.device),
            ).float()

    @torch.no_grad()
    def teacher(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        self.injection.eject(self.patcher)
        positive = [self.positive[i] for i in prompt.tolist()]
        both = self._denoised(
            torch.cat([x, x]), torch.cat([sigma, sigma]), positive + [self.negative] * len(x)
        ).cpu()
        conditional, unconditional = both.chunk(2)
        return conditional, unconditional

    def student(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        embedding = guidance_embedding(self.guidance.milliweights(g), self.guidance).to(self.device)
        # It stays injected for the backward pass, where checkpointed blocks run again.
        self.injection.inject(self.patcher)
        with guided_time(
            self.network, self.time_layer, nn.functional.linear(embedding, self.parameters[PROJECTION])
        ):
            return self._denoised(x, sigma, [self.positive[i] for i in prompt.tolist()])

    @torch.no_grad()
    def previous(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        present = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.before[name]
            return self.student(x, sigma, prompt, g).cpu()
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = present[name]

    @contextlib.contextmanager
    def training(self, checkpointing: bool) -> Iterator[None]:
        """Core's state of training, and gradient checkpointing of the network's blocks. Ends with the network
        as it was.
        """
        from comfy_extras.nodes_train import find_modules_at_depth

        blocks = find_modules_at_depth(self.network, depth=2) if checkpointing else []
        forwards = [block.forward for block in blocks]
        # Blocks of Flux change their input in place, after their normalisation kept it for the backward pass.
        mutation = (
            contextlib.nullcontext()
            if checkpointing
            else torch.autograd.graph.allow_mutation_on_saved_tensors()
        )
        comfy.model_management.in_training = True
        try:
            for block, forward in zip(blocks, forwards, strict=True):
                block.forward = checkpointed(forward)
            with mutation:
                yield
        finally:
            self.injection.eject(self.patcher)
            for block, forward in zip(blocks, forwards, strict=True):
                block.forward = forward
            comfy.model_management.in_training = False

    def check_guidable(self, world: World) -> None:
        """Raise NoUnconditional unless the teacher answers differently without its prompt."""
        rows = min(4, len(self.positive))
        x = world.start(rows, torch.Generator().manual_seed(0), world.level(0.5))
        conditional, unconditional = self.teacher(
            x, torch.full((rows,), world.level(0.5)), torch.arange(rows)
        )
        if (conditional - unconditional).abs().max() <= 1e-5 * conditional.abs().max():
            raise NoUnconditional(
                f"{self.name} answers the same with the prompts and with the negative prompt: there is no "
                f"guidance to "
                "learn. Expected a model trained for CFG, and prompts that differ from the negative one."
            )

    def needed_memory(self, world: World, batch: int) -> int:
        """Bytes that training takes beside the weights: what the backward pass keeps of ``batch`` rows, and
        the optimiser's.
        """
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        one = torch.ones(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = self.student(
                torch.zeros(1, *self.shape),
                one * world.level(0.5),
                torch.zeros(1).long(),
                one * world.scales[0],
            )
        weights = {
            parameter.untyped_storage().data_ptr()
            for parameter in [*self.network.parameters(), *self.parameters.values()]
        }
        activations = sum(size for pointer, size in kept.items() if pointer not in weights)
        del result
        return int(MARGIN * batch * activations) + 4 * sum(
            p.numel() * p.element_size() for p in self.parameters.values()
        )

    def check_memory(self, world: World, batch: int) -> None:
        """Raise NotEnoughMemory, with how much is needed, before the training starts."""
        needed, free = self.needed_memory(world, batch), comfy.model_management.get_free_memory(self.device)
        logging.info(
            "DizzyDiff: distilling takes about %.2f GiB beside the model; %.2f GiB are free on %s.",
            needed / 2**30,
            free / 2**30,
            self.device,
        )
        if needed > free:
            raise NotEnoughMemory(
                f"Training {batch} rows at once needs about {needed / 2**30:.1f} GiB beside the model, and "
                f"{free / 2**30:.1f} GiB are free on {self.device}. Expected more: lower the batch or the "
                f"latent's size, "
                "or turn gradient checkpointing on."
            )


def _lora_weights(shape: Sequence[int], rank: int) -> tuple:
    """up [out, rank] zero, down [rank, in] random (Hu et al. 2021, section 4.1); alpha = rank, so that the
    pair counts once.

    Core starts the other way round, with up random: then the first updates of layers with many inputs are far
    larger than their weights.
    """
    up, down = torch.zeros(shape[0], rank), torch.empty(rank, torch.Size(shape[1:]).numel())
    nn.init.kaiming_uniform_(down, a=5**0.5)
    return up, down, float(rank), None, None, None


def noise_levels(sampling: Any, borders: Tensor | None, first_steps: int) -> Callable[[int], Tensor]:
    """n -> the n + 1 sigmas of n steps, falling to 0: core's ``simple``, or those of ``borders`` [first_steps
    + 1] halved or refined.
    """
    if borders is None:
        return lambda n: comfy.samplers.calculate_sigmas(sampling, "simple", n)

    def levels(n: int) -> Tensor:
        grid = borders.float().cpu()
        if n <= first_steps:
            return grid[:: first_steps // n]
        parts = n // first_steps
        times = torch.tensor([float(sampling.timestep(sigma)) if sigma > 0 else 0.0 for sigma in grid])
        fine = torch.cat(
            [torch.linspace(float(a), float(b), parts + 1)[:-1] for a, b in itertools.pairwise(times)]
        )
        between = torch.tensor([float(sampling.sigma(t)) for t in fine])
        between[::parts] = grid[:-1]
        return torch.cat([between, grid[-1:]])

    return levels


class GuidanceWrapper:
    """An APPLY_MODEL wrapper that leads w, one a row, into the network's time layer."""

    def __init__(self, adapter: Adapter) -> None:
        self.projection, self.time_layer, self.guidance = (
            adapter.projection.float(),
            adapter.time_layer,
            adapter.guidance,
        )

    def __call__(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        milliweights = kwargs.pop(CONDITION)
        addition = guidance_embedding(milliweights, self.guidance) @ self.projection.to(milliweights.device).T
        with guided_time(executor.class_obj.diffusion_model, self.time_layer, addition):
            return executor(x, *args, **kwargs)


class GuidedConditions:
    """``extra_conds`` with 1000 w of the conditioning key ``guidance`` (g, or one g a row) beside the model's
    own conditions.
    """

    def __init__(self, original: Callable[..., dict[str, Any]], guidance: GuidanceInput, name: str) -> None:
        self.original, self.guidance, self.name = original, guidance, name

    def __call__(self, **kwargs: Any) -> dict[str, Any]:
        g = scales_tensor(kwargs.get("guidance"), self.guidance.default_scale)
        self.guidance.warn_outside(g, self.name)
        return {
            **self.original(**kwargs),
            CONDITION: comfy.conds.CONDRegular(self.guidance.milliweights(g).to(kwargs["device"])),
        }


def _fits(module: nn.Module | None, adapter: Adapter, layer: str) -> bool:
    """Whether the layer is there and has the size of its LoRA pair."""
    weight = getattr(module, "weight", None)
    up, down = (adapter.lora[f"{layer}.{part}.weight"] for part in ("lora_up", "lora_down"))
    return weight is not None and weight.shape[0] == up.shape[0] and weight[0].numel() == down.shape[1]


def check_teacher(teacher: Any, adapter: Adapter, name: str) -> None:
    """Raise WrongTeacher where an adapter does not fit a MODEL, and warn where it was made from other
    weights.
    """
    refuse_guided(teacher)
    network = teacher.model.diffusion_model
    modules = dict(network.named_modules())
    unfit = [
        layer
        for layer in adapter.layers
        if not _fits(modules.get(layer.removeprefix(LAYERS)), adapter, layer)
    ]
    origin = adapter.settings.get("teacher_name", "another model")
    if unfit or adapter.time_layer not in modules:
        raise WrongTeacher(
            f"{name} was distilled from {origin}, and this model is of another kind: {len(unfit)} layers "
            f"such as "
            f"{(unfit or [adapter.time_layer])[0]} are missing or of another size. Connect the teacher it "
            f"was made from."
        )
    if fingerprint(teacher) != adapter.teacher:
        logging.warning(
            "%s was distilled from %s with other weights or another dtype than this model has; expect "
            "artefacts.",
            name,
            origin,
        )


def layers_of(adapter: Adapter) -> dict[str, LoRAAdapter]:
    """Core's LoRA of every adapted layer."""
    return {layer: LoRAAdapter.load(layer, dict(adapter.lora), None, None) for layer in adapter.layers}


def guided_model(teacher: Any, guidance: GuidanceInput, name: str, wrapper: Callable[..., Tensor]) -> Any:
    """A copy of the teacher that takes a guidance scale from its conditioning and hands it to an APPLY_MODEL
    wrapper.
    """
    student = teacher.clone()
    original = student.get_model_object("extra_conds")
    student.add_object_patch("extra_conds", GuidedConditions(original, guidance, name))
    student.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, wrapper)
    return student


def student_of(teacher: Any, adapter: Adapter, name: str) -> Any:
    """The student as a native MODEL: core's LoRA patches on the teacher, and a guidance input. Raises
    WrongTeacher.
    """
    check_teacher(teacher, adapter, name)
    student = guided_model(teacher, adapter.guidance, name, GuidanceWrapper(adapter))
    student.add_patches({f"{layer}.weight": lora for layer, lora in layers_of(adapter).items()}, 1.0)
    return student
