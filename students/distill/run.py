# SPDX-License-Identifier: GPL-3.0-or-later
"""One distillation from start to file: begun, gone on with, interrupted or finished."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.fingerprint import fingerprint
from ...common.messages import Say, warn
from ...common.steps import euler_step, per_row
from .. import files
from ..adapter import ADAPTER_FORMAT, Adapter, adapter_of
from ..guidance import distilled_guidance
from . import saving
from .checks import check_gradient, check_rows, check_teacher
from .errors import BadPlan, CannotSave, NoPrompts, OtherTraining
from .failures import saying_out_of_memory, saying_what_fails
from .guider import TeacherGuider, check_model, conditionings, signals_of
from .guider_answers import ANSWERS, known_answers
from .guider_visits import GuiderVisits
from .memory import check_memory
from .plan import NO_PROMPTS, Plan, stages_of
from .teacher import noise_levels, trainable, versions
from .trainable import AdapterShape, TrainableStudent
from .training import Progress, Training

SAVE_EVERY = 200
"""Updates."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is distilled into which file.

    prompts: texts; encode: a text to core's CONDITIONING; shape: [C, H, W] of a latent; latents: [n, C, H, W]
    of pictures, the i-th shown by prompt i mod len(prompts), or None: states come from the teacher.
    stage_two_sigmas: of the first student of stage two, or None for core's ``simple``. turn: (i, K), where it
    is the i-th of K students that are trained one after the other. guider: what guides the teacher, with a
    negative prompt of its own; None for CFG. say: takes what the user should know.
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
    stage_two_sigmas: Tensor | None = None
    checkpointing: bool = True
    turn: tuple[int, int] = (0, 1)
    guider: TeacherGuider | None = None
    say: Say = warn


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
        state = _state_of_file(job)
        prompts = conditionings(job.guider, job.prompts, job.encode, job.negative, job.teacher)
        guidance = distilled_guidance(job.plan.scales, signals_of(job.guider))
        student = TrainableStudent(
            trainable(job.teacher),
            prompts,
            job.shape,
            AdapterShape(guidance, job.plan.rank, job.plan.seed),
            job.teacher_name,
        )
        metadata = _metadata(job, student.time_layer)
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


def check_inputs(job: Job) -> None:
    """Raise BadPlan for pictures and sigmas that nothing can be learned from, OtherGuiderModel for a guider
    of another model.
    """
    if job.guider is not None:
        check_model(job.guider, job.teacher)
    if job.latents is not None and not bool(job.latents.isfinite().all()):
        raise BadPlan(
            "The pictures' latents contain NaN or infinity. Expected finite numbers: encode the pictures "
            "again."
        )
    sigmas = job.stage_two_sigmas
    if sigmas is None or not job.plan.steps:
        return
    if (
        sigmas.ndim != 1
        or len(sigmas) != job.plan.first_steps + 1
        or not bool(sigmas.isfinite().all())
        or not bool((sigmas[1:] < sigmas[:-1]).all())
        or float(sigmas[-1]) < 0.0
    ):
        raise BadPlan(
            f"The sigmas of stage two are {[round(each, 4) for each in sigmas.flatten()[:8].tolist()]}. "
            "Expected them to fall from step to step: connect those of a scheduler."
        )


def _metadata(job: Job, time_layer: str) -> dict[str, Any]:
    """The file's metadata but for the progress."""
    metadata = saving.adapter_metadata(
        teacher=fingerprint(job.teacher),
        teacher_name=job.teacher_name,
        time_layer=time_layer,
        scales=job.plan.scales,
        plan=_plan_on_disk(job),
        versions=versions(),
    )
    return json.loads(json.dumps(metadata))


def _plan_on_disk(job: Job) -> dict[str, Any]:
    """Equal plans of equal teachers train equal students. The keys are those of files that stand on disks."""
    sigmas = job.stage_two_sigmas
    plan = {
        **asdict(job.plan),
        "shape": list(job.shape),
        "negative": job.negative,
        "pictures": None if job.latents is None else _digest(job.latents),
        "prompts": len(job.prompts),
        "prompts_sha256": hashlib.sha256("\n".join(job.prompts).encode()).hexdigest(),
        "borders": None if sigmas is None else sigmas.tolist(),
        "guider": None if job.guider is None else job.guider.described(),
    }
    return json.loads(json.dumps(plan))


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().float().cpu().numpy().tobytes()).hexdigest()[:16]


def _state_of_file(job: Job) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What an earlier run left in the file; raises OtherTraining where that was another training."""
    if not job.path.exists():
        return None
    tensors, found = files.read_weights((job.path,))
    expected = {"format": ADAPTER_FORMAT, "teacher": fingerprint(job.teacher)}
    different = [key for key, value in expected.items() if found.get(key) != value]
    plan = found.get("plan", {})
    different += [key for key, value in _plan_on_disk(job).items() if plan.get(key) != value]
    if different:
        raise OtherTraining(
            f"{job.path.name} exists and was made with another {', '.join(different)}. Expected the same "
            "settings, to go on with it: choose another output name, or remove the file."
        )
    return {key: value.clone() for key, value in tensors.items()}, found
