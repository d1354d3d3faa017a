# SPDX-License-Identifier: GPL-3.0-or-later
"""One distillation from start to file: begun, gone on with, interrupted or finished."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...common.steps import euler_step, per_row
from ..adapter import Adapter, adapter_of
from ..guidance import distilled_guidance
from . import saving
from .checks import check_gradient, check_rows, check_teacher
from .errors import CannotSave, NoPrompts
from .failures import saying_out_of_memory, saying_what_fails
from .guider import conditionings, signals_of
from .guider_answers import ANSWERS, known_answers
from .guider_visits import GuiderVisits
from .job import Job, check_inputs, metadata_of, state_of_file
from .memory import check_memory
from .plan import NO_PROMPTS, stages_of
from .teacher import noise_levels, trainable
from .trainable import AdapterShape, TrainableStudent
from .training import Progress, Training

SAVE_EVERY = 200
"""Updates."""


class Running:
    """A distillation under way, as its observer sees it."""

    def __init__(
        self, job: Job, student: TrainableStudent, training: Training, metadata: dict[str, Any]
    ) -> None:
        self.job, self.student, self.training, self.metadata = job, student, training, metadata
        self.distribution = training.stages[0].stage.distribution
        self.levels = levels_of(job, student)
        self.stage_ends = stage_ends_of(training)

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
        tensors = {name: parameter.detach().clone() for name, parameter in self.student.parameters.items()}
        return adapter_of(tensors, self.metadata, self.job.path.name)

    @torch.no_grad()
    def samples(self, rows: int, g: float) -> Tensor:
        """Latents [rows, ...] of the present student in the model's scale, always from the same noise,
        deterministic.
        """
        sigmas = self.levels(self.training.stages[self.training.progress.stage].stage.steps)
        generator = torch.Generator().manual_seed(self.job.plan.seed)
        x = self.distribution.draw_noise(rows, generator, float(sigmas[0]))
        prompt = torch.arange(rows) % self.distribution.prompts
        scales = torch.full((rows,), g, dtype=torch.float64)
        for sigma, sigma_next in itertools.pairwise(sigmas[:, None].expand(-1, rows)):
            D = self.student.student(x, sigma, prompt, scales).cpu()
            x = euler_step(x, D, per_row(sigma, x), per_row(sigma_next, x))
        return x


def levels_of(job: Job, student: TrainableStudent) -> Callable[[int], Tensor]:
    """n -> the sigmas of n steps."""
    sampling = student.model.get_model_object("model_sampling")
    return noise_levels(sampling, job.stage_two_sigmas, job.plan.first_steps)


def stage_ends_of(training: Training) -> list[int]:
    """Updates at which a stage ends and another begins."""
    return list(itertools.accumulate(planned.updates for planned in training.stages[:-1]))


Observer = Callable[[Running, Progress], None]
"""Called after each update; may raise to interrupt."""


@dataclass(frozen=True)
class Result:
    """The student's file as it stands, and the loss of every update. stage_ends: updates at which a stage
    ends.
    """

    adapter: Adapter
    losses: list[float]
    stage_ends: list[int]


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """ComfyUI runs nodes in inference mode, where nothing can be trained."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def distill(job: Job, observe: Observer = lambda running, progress: None) -> Result:
    """Train ``job`` from where its file stands to its end; what ``observe`` raises interrupts it, and what
    there is is saved.

    The result is the same with and without interruptions. Raises StudentError for everything the user can put
    right.
    """
    if not job.prompts:
        raise NoPrompts(NO_PROMPTS)
    saving.check_target(job.path)
    check_inputs(job)
    with gradients(), saying_out_of_memory():
        state = state_of_file(job)
        prompts = conditionings(job.guider, job.prompts, job.encode, job.negative, job.teacher)
        guidance = distilled_guidance(job.plan.scales, signals_of(job.guider))
        student = TrainableStudent(
            trainable(job.teacher),
            prompts,
            job.shape,
            AdapterShape(guidance, job.plan.rank, job.plan.seed),
            job.teacher_name,
        )
        metadata = metadata_of(job, student.time_layer)
        distribution = student.distribution(job.plan.scales, job.latents)
        visits = None
        if job.guider is not None:
            visits = GuiderVisits(job.guider, student, list(prompts.positive), job.plan.seed)
            before = None if state is None else state[1].get(ANSWERS)
            metadata[ANSWERS] = known_answers(visits, distribution, before, job.path.name, job.say)
        visit = visits if prompts.negative is None else None
        stages = stages_of(job.plan, distribution, levels_of(job, student), visit)
        training = Training(student, stages, job.plan)
        if state is not None:
            training.resume(*state)
        if not training.finished:
            _train(Running(job, student, training, metadata), observe)
        tensors, numbers = training.state()
        return Result(
            adapter_of(tensors, {**metadata, **numbers}, job.path.name),
            training.progress.losses,
            stage_ends_of(training),
        )


def _train(running: Running, observe: Observer) -> None:
    job, student, training = running.job, running.student, running.training

    def save() -> None:
        tensors, numbers = training.state()
        saving.write(job.path, tensors, {**running.metadata, **numbers, "finished": training.finished})

    def after(progress: Progress) -> None:
        if len(progress.losses) % SAVE_EVERY == 0:
            save()
        observe(running, progress)

    with student.training(job.checkpointing):
        with saying_what_fails(job.teacher_name, job.shape):
            check = check_teacher if student.negative else check_rows
            check(student, running.distribution)
            check_memory(student, running.distribution, job.plan.batch)
            check_gradient(student, running.distribution)
        try:
            training.run(after)
        except CannotSave:
            raise
        except BaseException:  # interruption by the user is one, and must not lose what there is
            _save_at_least(save)
            raise
        save()


def _save_at_least(save: Callable[[], None]) -> None:
    """An interruption stays one, also where there is no room for what it interrupts."""
    try:
        save()
    except CannotSave as error:
        logging.error("%s", error)
