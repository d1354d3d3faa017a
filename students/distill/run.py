# SPDX-License-Identifier: GPL-3.0-or-later
"""One distillation from start to file: begun, gone on with, interrupted or finished."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import formats
from ..guidance import GuidanceInput
from . import adapter, native, objective
from .adapter import Adapter
from .errors import CannotSave, NoPrompts, OtherTraining
from .training import Plan, Progress, Training, stages_of

SAVE_EVERY = 200


@dataclass(frozen=True)
class Job:
    """What is distilled into which file.

    prompts: texts; encode: a text to core's CONDITIONING; shape: [C, H, W] of a latent; latents: [n, C, H, W]
    of pictures, the i-th shown by prompt i mod len(prompts), or None: states come from the teacher. borders:
    sigmas of the first student of stage two, or None for core's ``simple``. turn: (i, K), where it is the
    i-th of K students that are trained one after the other.
    """

    teacher: Any
    teacher_name: str
    prompts: list[str]
    encode: Callable[[str], list]
    shape: tuple[int, ...]
    plan: Plan
    path: Path
    negative: str = ""
    latents: Tensor | None = None
    borders: Tensor | None = None
    checkpointing: bool = True
    turn: tuple[int, int] = (0, 1)


class Running:
    """A distillation under way, as its observer sees it."""

    def __init__(
        self, job: Job, distilled: native.Distilled, training: Training, settings: dict[str, Any]
    ) -> None:
        self.job, self.distilled, self.training, self.settings = job, distilled, training, settings
        self.world = training.stages[0].stage.world
        self.sampling = job.teacher.get_model_object("model_sampling")
        self.borders = borders_of(training)

    @property
    def done(self) -> int:
        """Updates made, those of earlier students included."""
        return self.job.turn[0] * self.training.total + len(self.training.progress.losses)

    @property
    def total(self) -> int:
        """Updates of all students."""
        return self.job.turn[1] * self.training.total

    def adapter(self) -> Adapter:
        """A copy of the present student. Not to be sampled before the training ends: both share the
        network.
        """
        tensors = {name: parameter.detach().clone() for name, parameter in self.distilled.parameters.items()}
        return adapter.adapter_of(tensors, self.settings, self.job.path.name)

    @torch.no_grad()
    def samples(self, rows: int, g: float) -> Tensor:
        """Latents [rows, ...] of the present student in the model's scale, always from the same noise,
        deterministic.
        """
        progress = self.training.progress
        steps = self.training.stages[progress.stage].stage.steps
        sigmas = native.noise_levels(self.sampling, self.job.borders, self.job.plan.first_steps)(steps)
        x = self.world.start(rows, torch.Generator().manual_seed(self.job.plan.seed), float(sigmas[0]))
        prompt = torch.arange(rows) % self.world.prompts
        for sigma, below in itertools.pairwise(sigmas):
            denoised = self.distilled.student(
                x, sigma.expand(rows), prompt, torch.full((rows,), g, dtype=torch.float64)
            ).cpu()
            x = objective.euler_step(x, denoised, sigma.expand(rows), below.expand(rows))
        return x


def borders_of(training: Training) -> list[int]:
    """Updates at which a stage ends and another begins."""
    return list(itertools.accumulate(planned.updates for planned in training.stages[:-1]))


Observer = Callable[[Running, Progress], None]
"""Called after each update; may raise to interrupt."""


@dataclass(frozen=True)
class Result:
    """The student's file as it stands, and the loss of every update. borders: updates at which a stage
    ends.
    """

    adapter: Adapter
    losses: list[float]
    borders: list[int]


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """ComfyUI runs nodes in inference mode, where nothing can be trained."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def distil(job: Job, observe: Observer = lambda running, progress: None) -> Result:
    """Train ``job`` from where its file stands to its end; what ``observe`` raises interrupts it, and what
    there is is saved.

    The result is the same with and without interruptions. Raises StudentError for everything the user can put
    right.
    """
    if not job.prompts:
        raise NoPrompts(
            "The list of prompts is empty. Expected one prompt a line, of the kind the student will be "
            "asked for."
        )
    with gradients():
        settings = _settings(job)
        state = _state_of_file(job, settings)
        distilled = native.Distilled(
            native.trainable(job.teacher),
            map(job.encode, job.prompts),
            job.encode(job.negative),
            job.shape,
            GuidanceInput(adapter.WIDTH, 1.0, job.plan.scales),
            job.plan.rank,
            job.plan.seed,
            job.teacher_name,
        )
        world = distilled.world(job.plan.scales, job.latents)
        sampling = distilled.patcher.get_model_object("model_sampling")
        levels = native.noise_levels(sampling, job.borders, job.plan.first_steps)
        training = Training(distilled, stages_of(job.plan, world, levels), job.plan)
        if state is not None:
            training.resume(*state)
        if not training.finished:
            _train(job, distilled, training, settings, observe)
        tensors, numbers = training.state()
        return Result(
            adapter.adapter_of(tensors, {**settings, **numbers}, job.path.name),
            training.progress.losses,
            borders_of(training),
        )


def _train(
    job: Job, distilled: native.Distilled, training: Training, settings: dict[str, Any], observe: Observer
) -> None:
    running = Running(job, distilled, training, settings)

    def save() -> None:
        tensors, numbers = training.state()
        adapter.write(job.path, tensors, {**settings, **numbers, "finished": training.finished})

    def after(progress: Progress) -> None:
        if len(progress.losses) % SAVE_EVERY == 0:
            save()
        observe(running, progress)

    with distilled.training(job.checkpointing):
        distilled.check_guidable(running.world)
        distilled.check_memory(running.world, job.plan.batch)
        try:
            training.run(after)
        except CannotSave:
            raise
        except BaseException:  # interruption by the user is one, and must not lose what there is
            save()
            raise
        save()


def _settings(job: Job) -> dict[str, Any]:
    """The file's metadata but for the progress: equal settings train equal students."""
    pictures = None if job.latents is None else _digest(job.latents)
    plan = {
        **asdict(job.plan),
        "shape": list(job.shape),
        "negative": job.negative,
        "pictures": pictures,
        "prompts": len(job.prompts),
        "prompts_sha256": hashlib.sha256("\n".join(job.prompts).encode()).hexdigest(),
        "borders": None if job.borders is None else job.borders.tolist(),
    }
    settings = adapter.settings_of(
        native.fingerprint(job.teacher),
        job.teacher_name,
        native.time_layer_of(job.teacher.model.diffusion_model, job.teacher_name),
        job.plan.scales,
        plan,
        native.versions(),
    )
    return json.loads(json.dumps(settings))


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().float().numpy().tobytes()).hexdigest()[:16]


def _state_of_file(job: Job, settings: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What an earlier run left in the file; raises OtherTraining where that was another training."""
    if not job.path.exists():
        return None
    tensors, found = formats.read_weights((job.path,))
    different = [key for key in ("format", "teacher") if found.get(key) != settings[key]]
    different += [key for key, value in settings["plan"].items() if found.get("plan", {}).get(key) != value]
    if different:
        raise OtherTraining(
            f"{job.path.name} exists and was made with another {', '.join(different)}. Expected the same "
            f"settings, to go "
            "on with it: choose another output name, or remove the file."
        )
    return {key: value.clone() for key, value in tensors.items()}, found
