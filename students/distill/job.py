# SPDX-License-Identifier: GPL-3.0-or-later
"""What is distilled into which file, and whether a file is of that training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.fingerprint import fingerprint
from ...common.messages import Say, warn
from .. import files
from ..adapter import ADAPTER_FORMAT
from . import saving
from .errors import BadPlan, OtherTraining
from .guider import TeacherGuider, check_model
from .plan import Plan
from .teacher import versions

LONGEST_SAID = 24
"""Letters of a setting in a message."""


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


def metadata_of(job: Job, time_layer: str) -> dict[str, Any]:
    """The file's metadata but for the progress."""
    metadata = saving.adapter_metadata(
        teacher=fingerprint(job.teacher),
        teacher_name=job.teacher_name,
        time_layer=time_layer,
        scales=job.plan.scales,
        plan=plan_on_disk(job),
        versions=versions(),
    )
    return json.loads(json.dumps(metadata))


def plan_on_disk(job: Job) -> dict[str, Any]:
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


def _said(value: Any) -> str:
    """Of a list or a digest, the beginning."""
    text = str(value)
    return text if len(text) <= LONGEST_SAID else f"{text[:LONGEST_SAID]}..."


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().float().cpu().numpy().tobytes()).hexdigest()[:16]


def check_file(job: Job) -> None:
    """Raise OtherTraining where the job's file is of another training, which distilling would find too."""
    state_of_file(job)


def state_of_file(job: Job) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What an earlier run left in the file; raises OtherTraining where that was another training."""
    if not job.path.exists():
        return None
    tensors, found = files.read_weights((job.path,))
    expected = {"format": ADAPTER_FORMAT, "teacher": fingerprint(job.teacher)}
    different = [key for key, value in expected.items() if found.get(key) != value]
    plan = found.get("plan", {})
    different += [
        f"{key} ({_said(plan.get(key))} there, {_said(value)} here)"
        for key, value in plan_on_disk(job).items()
        if plan.get(key) != value
    ]
    if different:
        raise OtherTraining(
            f"{job.path.name} exists and was made with another {', '.join(different)}. Expected the same "
            "settings, to go on with it: choose another output name, or remove the file."
        )
    return {key: value.clone() for key, value in tensors.items()}, found
