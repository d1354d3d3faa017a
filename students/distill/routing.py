# SPDX-License-Identifier: GPL-3.0-or-later
"""The students of adapters' files as native MODELs; of several students, each row of a batch is answered by
its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from comfy.weight_adapter.bypass import BypassInjectionManager
from torch import Tensor

from .. import formats
from . import adapter as files
from . import several
from .adapter import Adapter
from .native import GuidanceWrapper, check_teacher, guided_model, layers_of, student_of

IN_MEMORY = 4
"""Students whose adapters are kept, the last used first."""


def load_student(path: Path, name: str, teacher: Any, in_memory: int = IN_MEMORY) -> Any:
    """The student of an adapter's file, or the students of a manifest, on their teacher. Raises
    StudentError.
    """
    metadata = {} if path.is_dir() else formats.read_weights((path,))[1]
    if files.is_several(metadata):
        manifest = several.read(path, name)
        return students_of(teacher, manifest, several.loader(path, manifest), name, in_memory)
    return student_of(teacher, files.read(path, name), name)


def students_of(
    teacher: Any,
    manifest: several.Manifest,
    load: Callable[[int], Adapter],
    name: str,
    in_memory: int = IN_MEMORY,
) -> Any:
    """Several students as one native MODEL, of whose adapters at most ``in_memory`` are held at a time.

    The first is read at once, to see whether the teacher is theirs. Raises WrongTeacher.
    """
    first = load(0)
    check_teacher(teacher, first, name)
    return guided_model(teacher, first.guidance, name, Router(manifest.centres, load, in_memory))


class Router:
    """An APPLY_MODEL wrapper: every row is answered by the student in whose region its prompt lies."""

    def __init__(self, centres: Tensor, load: Callable[[int], Adapter], in_memory: int) -> None:
        self.centres = centres
        self.worn = functools.lru_cache(maxsize=in_memory)(lambda number, device: Worn(load(number)))

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
        numbers = several.nearest(several.embedding(context), self.centres)
        answers = torch.empty_like(x)
        for number in numbers.unique().tolist():
            rows = (numbers == number).nonzero()[:, 0]
            *arguments, named = rows_of((x, t, c_concat, context, control, kwargs), rows, len(x))
            told = {**options, "sigmas": rows_of(options.get("sigmas"), rows, len(x))}
            with self.worn(number, str(x.device)).on(executor.class_obj, x.device) as guided:
                answers[rows] = guided(executor, *arguments, told, **named).to(answers)
        return answers


class Worn:
    """One student, to be put on the network for a call: core's LoRA in bypass mode, which leaves the weights
    as they are.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.loras, self.guided = layers_of(adapter), GuidanceWrapper(adapter)

    @contextlib.contextmanager
    def on(self, model: Any, device: torch.device) -> Iterator[GuidanceWrapper]:
        manager = BypassInjectionManager()
        for layer, lora in self.loras.items():
            manager.add_adapter(layer, lora)
        (injection,) = manager.create_injections(model)
        injection.inject(None)
        try:
            for lora in (
                self.loras.values()
            ):  # core puts them on its first device, which a replica of the model need not be on
                lora.weights = tuple(
                    value.to(device) if isinstance(value, Tensor) else value for value in lora.weights
                )
            yield self.guided
        finally:
            injection.eject(None)


def rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """Some rows of whatever has ``batch`` of them, however nested; the rest as it is."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {key: rows_of(each, rows, batch) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rows_of(each, rows, batch) for each in value]
    return value
