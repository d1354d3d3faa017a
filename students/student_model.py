# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapters on their teacher as native MODELs. Of several students, each row of a batch is sampled by its own
(multi-student distillation, Song et al. 2024, arXiv 2410.23274).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import comfy.conds
import torch
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from comfy.weight_adapter.bypass import BypassInjectionManager
from torch import Tensor, nn

from ..common.fingerprint import fingerprint
from . import loader
from .adapter import LAYERS, Adapter, Manifest, read
from .bypass import add_loras
from .errors import NoUnconditional, WrongTeacher
from .guidance import GuidanceInput, guidance_embedding, signals_tensor
from .linear import weight_shape
from .loader import Source
from .networks import GuidedModel
from .time_embedding import guided_time

CONDITION, KEY = "dizzydiff_milliweights", "dizzydiff_guidance"
DISTILLED = "dizzydiff_distilled"
"""The attachment of a MODEL that holds its Adapter or Manifest."""
IN_MEMORY = 4
"""Students whose adapters are kept, the last used first."""


def load_student(source: Source, teacher: Any = None, in_memory: int = IN_MEMORY) -> Any:
    """What the user chose as MODEL: a whole network, or on its teacher (a MODEL) the student of an adapter's
    file or the students of a manifest. Raises StudentError.
    """
    if teacher is None:
        return loader.load_student(source)
    student = read(source.path, source.name)
    if isinstance(student, Manifest):
        return students_of(teacher, student, source.name, in_memory)
    return student_of(teacher, student, source.name)


def student_of(teacher: Any, adapter: Adapter, name: str) -> Any:
    """One student: core's LoRA on the teacher, and a guidance input. Raises WrongTeacher."""
    check_teacher(teacher, adapter, name)
    plan, patches = adapter.settings.get("plan"), guidance_patches(teacher)
    if isinstance(plan, dict) and plan.get("guider") and patches:
        logging.warning(
            "%s has learned what its guider did, and the teacher has guidance patches of its own (%s), which "
            "count once more. Connect the model from before them.",
            name,
            ", ".join(patches),
        )
    student = guided_model(teacher, adapter.guidance, name, GuidanceWrapper(adapter))
    student.set_attachments(DISTILLED, adapter)
    add_loras(student, loras_of(adapter))
    return student


def students_of(teacher: Any, manifest: Manifest, name: str, in_memory: int = IN_MEMORY) -> Any:
    """Several students, of whose adapters at most ``in_memory`` are held at a time.

    The first is read at once, to see whether the teacher is theirs. Raises WrongTeacher.
    """
    first = manifest.adapter(0)
    check_teacher(teacher, first, f"{name} ({manifest.files[0]})")
    student = guided_model(teacher, first.guidance, name, Router(manifest, in_memory))
    student.set_attachments(DISTILLED, manifest)
    return student


def distilled(model: Any) -> Adapter | Manifest | None:
    """What makes of its teacher the student that a MODEL is; None where it is no student of Distill
    Guidance.
    """
    return model.get_attachment(DISTILLED)


def takes_guidance(model: Any) -> bool:
    """Whether a MODEL takes its guidance as an input: a student, or a guidance-distilled model of core's."""
    config = model.model.model_config
    if vars(config).get("guidance") is not None or KEY in model.wrappers.get(WrappersMP.APPLY_MODEL, {}):
        return True
    # A teacher of a layout that has the input may leave it at zero.
    layer = getattr(getattr(model.model.diffusion_model, "guidance_in", None), "out_layer", None)
    return isinstance(layer, nn.Module) and any(bool(each.float().any()) for each in layer.parameters())


def guidance_input_of(model: Any) -> GuidanceInput | None:
    """How a MODEL takes the guidance that this pack hands it; None for every other model."""
    conditions = model.object_patches.get("extra_conds")
    if isinstance(conditions, GuidedConditions):
        return conditions.guidance
    return model.model.guidance if isinstance(model.model, GuidedModel) else None


def ignores_guidance(model: Any) -> bool:
    """Whether a guidance in the conditioning has no effect on a MODEL."""
    if takes_guidance(model):
        return False
    network = model.model.diffusion_model
    # Of networks with the layer, takes_guidance has asked; one without may use guidance otherwise.
    named = "guidance" in inspect.signature(network.forward).parameters
    return not named or hasattr(network, "guidance_in")


def guidance_patches(model: Any) -> list[str]:
    """Names of those options of a MODEL that guide it where it is sampled: no network sees them."""
    return sorted(key for key, value in model.model_options.items() if key.startswith("sampler_") and value)


def check_unguided(model: Any) -> None:
    """Raise NoUnconditional for a MODEL that takes its guidance as an input."""
    if takes_guidance(model):
        raise NoUnconditional(
            "This model takes the guidance scale as an input already: it is a student. Expected a teacher to "
            "be sampled with CFG."
        )


def check_teacher(teacher: Any, adapter: Adapter, name: str) -> None:
    """Raise WrongTeacher where an adapter does not fit a MODEL, and warn where it was made from other
    weights.
    """
    check_unguided(teacher)
    modules = dict(teacher.model.diffusion_model.named_modules())
    unfit = [
        layer
        for layer in adapter.layers
        if not _fits(modules.get(layer.removeprefix(LAYERS)), adapter, layer)
    ]
    time_layer = modules.get(adapter.time_layer)
    if unfit or getattr(time_layer, "in_features", None) != len(adapter.projection):
        raise WrongTeacher(
            f"{name} was distilled from {adapter.teacher_name}, and this model is of another kind: "
            f"{len(unfit)} layers such as {(unfit or [adapter.time_layer])[0]} are missing or of another "
            "size. Connect the teacher it was made from."
        )
    if fingerprint(teacher) != adapter.teacher:
        logging.warning(
            "%s was distilled from %s with other weights or another dtype than this model has; expect "
            "artefacts.",
            name,
            adapter.teacher_name,
        )


def _fits(module: nn.Module | None, adapter: Adapter, layer: str) -> bool:
    """Whether the layer is there and has the size of its LoRA pair."""
    if getattr(module, "weight", None) is None:
        return False
    shape = weight_shape(module)
    up, down = (adapter.lora[f"{layer}.{part}.weight"] for part in ("lora_up", "lora_down"))
    return shape[0] == up.shape[0] and shape[1:].numel() == down.shape[1]


def loras_of(adapter: Adapter) -> dict[str, LoRAAdapter]:
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


class GuidedConditions:
    """``extra_conds`` with 1000 w of the conditioning key ``guidance`` (g, or one g a row; ``guidance_2`` for
    a second signal) beside the model's own conditions, which do not see these keys: the teacher was asked
    without them.
    """

    def __init__(self, original: Callable[..., dict[str, Any]], guidance: GuidanceInput, name: str) -> None:
        self.original, self.guidance, self.name = original, guidance, name

    def __call__(self, **kwargs: Any) -> dict[str, Any]:
        first, second = (kwargs.pop(key, None) for key in ("guidance", "guidance_2"))
        g = signals_tensor(first, second, self.guidance)
        self.guidance.warn_outside(g, self.name)
        return {
            **self.original(**kwargs),
            CONDITION: comfy.conds.CONDRegular(self.guidance.milliweights(g).to(kwargs["device"])),
        }


class GuidanceWrapper:
    """An APPLY_MODEL wrapper that leads w, one a row, into the network's time layer."""

    def __init__(self, adapter: Adapter) -> None:
        self.projection, self.time_layer = adapter.projection.float(), adapter.time_layer
        self.guidance = adapter.guidance

    def __call__(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        milliweights = kwargs.pop(CONDITION)
        addition = guidance_embedding(milliweights, self.guidance) @ self.projection.to(milliweights.device).T
        with guided_time(executor.class_obj.diffusion_model, self.time_layer, addition, t):
            return executor(x, t, *args, **kwargs)


class Router:
    """An APPLY_MODEL wrapper: every row is answered by the student in whose region its prompt lies."""

    def __init__(self, manifest: Manifest, in_memory: int) -> None:
        self.centres = manifest.centres
        self.applied = functools.lru_cache(maxsize=in_memory)(
            lambda number, device: AppliedLoRA(manifest.adapter(number))
        )

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any,
        context: Tensor,
        control: Any,
        options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        numbers = nearest(prompt_embedding(context), self.centres)
        answers = torch.empty_like(x)
        for number in numbers.unique().tolist():
            rows = (numbers == number).nonzero()[:, 0]
            *arguments, named = rows_of((x, t, c_concat, context, control, kwargs), rows, len(x))
            told = {**options, "sigmas": rows_of(options.get("sigmas"), rows, len(x))}
            with self.applied(number, str(x.device)).to(executor.class_obj, x.device) as guided:
                answers[rows] = guided(executor, *arguments, told, **named).to(answers)
        return answers


class AppliedLoRA:
    """One student, to be put on the network for a call: core's LoRA in bypass mode, which leaves the weights
    as they are.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.loras, self.guided = loras_of(adapter), GuidanceWrapper(adapter)

    @contextlib.contextmanager
    def to(self, model: Any, device: torch.device) -> Iterator[GuidanceWrapper]:
        """Inside, the network of ``model`` on ``device`` is the student's."""
        manager = BypassInjectionManager()
        for layer, lora in self.loras.items():
            manager.add_adapter(layer, lora)
        (injection,) = manager.create_injections(model)
        injection.inject(None)
        try:
            # Core puts them on its first device, which a replica of the model need not be on.
            for lora in self.loras.values():
                lora.weights = tuple(
                    value.to(device) if isinstance(value, Tensor) else value for value in lora.weights
                )
            yield self.guided
        finally:
            injection.eject(None)


def prompt_embedding(context: Tensor) -> Tensor:
    """Where prompts lie: the mean over the tokens that the network's cross-attention sees.

    [B, T, E] -> [B, E] in fp32. Core pads prompts of one batch by repeating them, which leaves the mean as it
    is.
    """
    return context.float().mean(1)


def nearest(embeddings: Tensor, centres: Tensor) -> Tensor:
    """[B, E] -> [B]: the number of the student whose region each lies in."""
    return torch.cdist(embeddings, centres.to(embeddings)).argmin(1)


def rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """Some rows of whatever has ``batch`` of them, however nested; the rest as it is."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {key: rows_of(each, rows, batch) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rows_of(each, rows, batch) for each in value]
    return value
