# SPDX-License-Identifier: GPL-3.0-or-later
"""Several students of one teacher, each for a region of the prompts (multi-student distillation, Song et al.
2024, arXiv 2410.23274). The regions are those of k-means over the prompts' embeddings.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import files
from ..adapter import Manifest, is_manifest
from ..student_model import nearest, prompt_embedding
from .errors import BadPlan, NoPrompts, OtherTraining
from .failures import saying_what_fails
from .job import Job, check_file, check_inputs
from .plan import NO_PROMPTS
from .run import Observer, Result, distill
from .saving import check_target, write_manifest
from .teacher import conditions_of


def regions(embeddings: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """k-means (Arthur and Vassilvitskii 2007): centres [count, E] and the region of each of the embeddings
    [n, E].

    Raises BadPlan for fewer different prompts than regions.
    """
    from scipy.cluster.vq import kmeans2

    different = len(embeddings.unique(dim=0))
    if different < count:
        raise BadPlan(
            f"{count} students were asked for, and there are {different} different prompts. Expected at "
            "least as many prompts as students, and better hundreds of each kind: add prompts, or ask for "
            "fewer students."
        )
    centres, _ = kmeans2(embeddings.double().numpy(), count, iter=100, minit="++", seed=seed)
    centres = torch.from_numpy(centres).float()
    return centres, nearest(embeddings, centres)


def distill_several(
    job: Job, count: int, observe: Observer = lambda running, progress: None
) -> tuple[Manifest, list[Result]]:
    """Train ``count`` students, one after the other, each on the prompts of its region, and write the
    manifest to ``job.path``.

    Interrupted and run again, it goes on with the student it had come to. Raises OtherTraining where
    ``job.path`` is something else.
    """
    if not job.prompts:
        raise NoPrompts(NO_PROMPTS)
    check_target(job.path)
    check_inputs(job)
    if job.path.exists() and not is_manifest(files.read_weights((job.path,))[1]):
        raise OtherTraining(
            f"{job.path.name} exists and is no manifest of several students. Expected a free name: choose "
            "another output name."
        )
    with saying_what_fails(job.teacher_name, job.shape):
        encoded = conditions_of(job.teacher, map(job.encode, job.prompts), job.shape, "positive")
        embeddings = torch.cat([prompt_embedding(each["c_crossattn"].cond).cpu() for each in encoded])
    centres, owners = regions(embeddings, count, job.plan.seed)
    jobs = [job_of_region(job, (owners == i).nonzero()[:, 0], i, count) for i in range(count)]
    for one in jobs:  # before hours are spent on those in front of it
        check_file(one)
    results = [distill(one, observe) for one in jobs]
    manifest = Manifest(job.path, centres, tuple(one.path.name for one in jobs))
    write_manifest(manifest)
    return manifest, results


def job_of_region(job: Job, prompts: Tensor, number: int, count: int) -> Job:
    """The job of one of ``count`` students. prompts: the numbers of its own. Raises BadPlan where it has
    none.
    """
    if not len(prompts):
        raise BadPlan(
            f"No prompt is nearest to the centre of student {number + 1} of {count}. Expected more prompts, "
            "or fewer students."
        )
    return replace(
        job,
        prompts=[job.prompts[i] for i in prompts.tolist()],
        latents=None if job.latents is None else pictures_of(job.latents, prompts, len(job.prompts)),
        path=job.path.with_name(f"{job.path.stem}_{number + 1}of{count}.safetensors"),
        turn=(number, count),
    )


def pictures_of(latents: Tensor, prompts: Tensor, n: int) -> Tensor:
    """Of pictures, the i-th shown by prompt i mod n, those of some prompts, in the order in which ``Job``
    wants them.
    """
    rounds = torch.arange(0, len(latents), n)[:, None] + prompts
    return latents[rounds[(rounds < len(latents)).all(1)].flatten()]
