# SPDX-License-Identifier: GPL-3.0-or-later
"""What the other features do to latents outside the network, counted as in ``_gpu_passes``, to see where a
kernel could matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..devtools.pretend_device import Away, booked
from ._gpu_passes import NETWORK, means, stand_in_network, where


def elsewhere(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """One row a feature: means over what it is done for. Counts are the same on every device, so they are
    made on the CPU.
    """
    for feature, each, work in (
        ("stability profile", "call of the model", _measurement),
        ("stage one: target, loss and gradient", "update", _update),
        ("guidance embedding", "call of the student", _guidance),
    ):
        latent = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
        with booked(where, latent.nbytes) as ledger:
            times = work(Away(latent))
        yield {
            "feature": feature,
            "for each": each,
            **means(ledger, {*ledger.launches, *ledger.host_operations} - {NETWORK}, times),
        }


def _measurement(latent: Tensor) -> int:
    """A profile from one probe; its calls. What is counted happens on the host, in float64, where the answers
    are taken.
    """
    from ..stability.profile import THOROUGH, level_sigmas, measure

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return stand_in_network(x, x.new_full([len(x)], sigma))

    sigmas = level_sigmas(14.6, 0.03, THOROUGH.levels, flow=False)
    return measure(denoise, 14.6 * latent, sigmas, THOROUGH.directions, False, lambda made, of: None).calls


def _update(latent: Tensor) -> int:
    """From the answers of teacher and student to the gradient that the student's backward pass begins
    with.
    """
    from ..students.distill import objective

    w, sigma = latent.new_full([1], 3.0), latent.new_full([1], 2.0)
    student = (0.9 * latent).requires_grad_()
    target = objective.guided(latent, 0.5 * latent, w)
    objective.loss(student, target, sigma, w, flow=False).backward()
    return 1


def _guidance(latent: Tensor) -> int:
    from ..students.guidance import GuidanceInput, guidance_embedding

    guidance_embedding(latent.new_full([1], 3000.0), GuidanceInput(256, 1.0, (1.0, 8.0)))
    return 1
