# SPDX-License-Identifier: GPL-3.0-or-later
"""Several students of one teacher, each for a region of the prompts (multi-student distillation, Song et al.
2024, arXiv 2410.23274).

The regions are those of k-means over the prompts' embeddings. A manifest, one small safetensors file, holds
their centres and the names of the students' files, which lie beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from .. import formats
from ..errors import DamagedFile
from . import adapter, native
from .adapter import SEVERAL, Adapter
from .errors import BadPlan, OtherTraining
from .run import Job, Observer, Result, distil

CENTRES = "centres"


@dataclass(frozen=True)
class Manifest:
    """centres: [K, E], of the regions; files: K names of the students' files, beside the manifest."""

    centres: Tensor
    files: tuple[str, ...]


def embedding(context: Tensor) -> Tensor:
    """Where prompts lie: the mean over the tokens that the network's cross-attention sees. [B, T, E] -> [B,
    E] in fp32.

    Core pads prompts of one batch by repeating them, which leaves the mean as it is.
    """
    return context.float().mean(1)


def nearest(embeddings: Tensor, centres: Tensor) -> Tensor:
    """[B, E] -> [B]: the number of the student whose region each lies in."""
    return torch.cdist(embeddings, centres.to(embeddings)).argmin(1)


def regions(embeddings: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """k-means (Arthur and Vassilvitskii 2007): centres [count, E] and the region of each of the embeddings
    [n, E].

    Raises BadPlan for fewer different prompts than regions.
    """
    different = len(embeddings.unique(dim=0))
    if different < count:
        raise BadPlan(
            f"{count} students were asked for, and there are {different} different prompts. Expected at "
            f"least as many prompts as "
            "students, and better hundreds of each kind: add prompts, or ask for fewer students."
        )
    centres, _ = kmeans2(embeddings.double().numpy(), count, iter=100, minit="++", seed=seed)
    centres = torch.from_numpy(centres).float()
    return centres, nearest(embeddings, centres)


def distil_several(
    job: Job, count: int, observe: Observer = lambda running, progress: None
) -> tuple[Manifest, list[Result]]:
    """Train ``count`` students, one after the other, each on the prompts of its region, and write the
    manifest to ``job.path``.

    Interrupted and run again, it goes on with the student it had come to. Raises OtherTraining where
    ``job.path`` is something else.
    """
    if job.path.exists() and not adapter.is_several(formats.read_weights((job.path,))[1]):
        raise OtherTraining(
            f"{job.path.name} exists and is no manifest of several students. Expected a free name: choose "
            f"another "
            "output name."
        )
    encoded = native.conditions_of(job.teacher, map(job.encode, job.prompts), job.shape, "positive")
    embeddings = torch.cat([embedding(each["c_crossattn"].cond).cpu() for each in encoded])
    centres, owners = regions(embeddings, count, job.plan.seed)
    results, files = [], []
    for number in range(count):
        path = job.path.with_name(f"{job.path.stem}_{number + 1}of{count}.safetensors")
        mine = (owners == number).nonzero()[:, 0]
        if not len(mine):
            raise BadPlan(
                f"No prompt is nearest to the centre of student {number + 1} of {count}. Expected more "
                f"prompts, or fewer "
                "students."
            )
        latents = None if job.latents is None else _pictures_of(job.latents, mine, len(job.prompts))
        results.append(
            distil(
                replace(
                    job,
                    prompts=[job.prompts[i] for i in mine.tolist()],
                    latents=latents,
                    path=path,
                    turn=(number, count),
                ),
                observe,
            )
        )
        files.append(path.name)
    manifest = Manifest(centres, tuple(files))
    write(job.path, manifest)
    return manifest, results


def _pictures_of(latents: Tensor, prompts: Tensor, n: int) -> Tensor:
    """Of pictures, the i-th shown by prompt i mod n, those of some prompts, in the order in which ``Job``
    wants them.
    """
    rounds = torch.arange(0, len(latents), n)[:, None] + prompts
    return latents[rounds[(rounds < len(latents)).all(1)].flatten()]


def write(path: Path, manifest: Manifest) -> None:
    """Raises CannotSave."""
    adapter.write(path, {CENTRES: manifest.centres}, {"format": SEVERAL, "files": list(manifest.files)})


def read(path: Path, name: str) -> Manifest:
    """Raises DamagedFile."""
    tensors, metadata = formats.read_weights((path,))
    files, centres = metadata.get("files"), tensors.get(CENTRES)
    if centres is None or not isinstance(files, list) or len(files) != len(centres) or not files:
        raise DamagedFile(
            f"{name}: the manifest of several students lacks some of its parts. Expected {CENTRES} and a "
            f"file's name for "
            "each: get another copy, or distil again."
        )
    return Manifest(centres, tuple(str(file) for file in files))


def loader(path: Path, manifest: Manifest) -> Callable[[int], Adapter]:
    """The i-th student of a manifest at ``path``, read when it is asked for."""
    return lambda number: adapter.read(
        formats.inside(path.parent, manifest.files[number]), manifest.files[number]
    )
