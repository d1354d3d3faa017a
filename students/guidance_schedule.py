# SPDX-License-Identifier: GPL-3.0-or-later
"""Guidance that changes along the way: g by noise level, of every row by its own, so that rows at different
noise levels may share a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from .errors import BadSchedule
from .guidance import HIGHEST_SCALE
from .student_model import CONDITION, guidance_input_of

KEY = "dizzydiff_guidance_schedule"
PARTS = 1000
"""In which the table divides the sampling; the points of the schedule are in it as well."""
MILLIWEIGHTS = (CONDITION, "milliweights")
"""Conditions of students that hold 1000 w a row: of adapters, and of whole networks."""
GUIDANCE = "guidance"
"""The condition of core's networks that holds g."""

Points = list[tuple[float, float]]
"""(share of the sampling, g), the share rising from 0 to 1."""


def parse_schedule(text: str) -> Points:
    """Read "0: 1, 0.2: 4, 1: 2" (commas, semicolons or lines between the points). Raises BadSchedule."""
    points = []
    for part in text.replace(";", ",").replace("\n", ",").split(","):
        if part.strip():
            percent, colon, g = part.partition(":")
            points.append((_number(percent, text), _number(g, text) if colon else -1.0))
    rising = all(a[0] < b[0] for a, b in itertools.pairwise(points))
    if not points or not rising or not all(0 <= p <= 1 and 0 <= g <= HIGHEST_SCALE for p, g in points):
        raise _unreadable(text)
    return points


def _number(word: str, text: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise _unreadable(text) from error


def _unreadable(text: str) -> BadSchedule:
    return BadSchedule(
        f'schedule: got "{text}"; expected points "share of the sampling: guidance" with shares that rise '
        f'from 0 to 1 and scales from 0 to {HIGHEST_SCALE:g}, such as "0: 1, 0.2: 4, 1: 2".'
    )


@dataclass(frozen=True)
class Table:
    """g at noise levels. sigmas: [n], rising. thousandths: [n], 1000 g, whole at the points of a schedule, so
    that a scale comes out as it was given.
    """

    sigmas: Tensor
    thousandths: Tensor

    def at(self, sigma: Tensor) -> Tensor:
        """[B] of sigma -> [B] of 1000 g in fp32: straight lines between the levels, flat outside."""
        sigmas, values = self.sigmas.to(sigma.device), self.thousandths.to(sigma.device)
        sigma = sigma.float().contiguous()
        above = torch.searchsorted(sigmas, sigma).clamp(1, len(sigmas) - 1)
        low, high = sigmas[above - 1], sigmas[above]
        share = ((sigma - low) / (high - low)).clamp(0.0, 1.0)
        return torch.lerp(values[above - 1], values[above], share)


def table_of(points: Points, sampling: Any) -> Table:
    """sampling: core's model_sampling, whose noise level at each share of the sampling is asked for."""
    shares = sorted({*(i / PARTS for i in range(PARTS + 1)), *(share for share, _ in points)}, reverse=True)
    highest = float(sampling.sigma_max)
    sigmas = torch.tensor([min(float(sampling.percent_to_sigma(share)), highest) for share in shares])
    values = torch.tensor([1000.0 * interpolated(points, share) for share in shares])
    new = torch.cat([torch.tensor([True]), sigmas[1:] > sigmas[:-1]])
    return Table(sigmas[new], values[new])


def interpolated(points: Sequence[tuple[float, float]], share: float) -> float:
    """g at a share of the sampling: straight lines between the points, flat before and after them."""
    if share <= points[0][0]:
        return points[0][1]
    for (start, g), (end, g_next) in itertools.pairwise(points):
        if share < end:
            return g + (g_next - g) * (share - start) / (end - start)
    return points[-1][1]


def beyond_training(model: Any, points: Points) -> str | None:
    """What is said of scales outside the range that a student was trained for; None where there are none."""
    guidance = guidance_input_of(model)
    if guidance is None or guidance.scale_range is None:
        return None
    (low, high), scales = guidance.scale_range, [g for _, g in points]
    if low <= min(scales) and max(scales) <= high:
        return None
    return (
        f"The schedule goes from guidance {min(scales):g} to {max(scales):g}, and this student was trained "
        f"for {low:g} to {high:g}: expect artefacts outside."
    )


class ScheduledGuidance:
    """An APPLY_MODEL wrapper that puts the scale of each row's own noise level in the place of the
    conditioning's.
    """

    def __init__(self, table: Table, offset: float) -> None:
        self.table, self.thousandths_off = table, 1000 * offset

    def __call__(self, executor: Any, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        told = {key: self._milliweights(sigma, kwargs[key]) for key in MILLIWEIGHTS if key in kwargs}
        if not told and kwargs.get(GUIDANCE) is not None:
            told = {GUIDANCE: self.table.at(sigma) / 1000}
        return executor(x, sigma, *args, **{**kwargs, **told})

    def _milliweights(self, sigma: Tensor, given: Tensor) -> Tensor:
        """[B], or [B, 2]: a second signal of its own stays, one that is the first's follows it."""
        scheduled = torch.round(self.table.at(sigma) - self.thousandths_off).long()
        if given.ndim == 1:
            return scheduled
        first, second = given.unbind(1)
        return torch.stack([scheduled, torch.where(second == first, scheduled, second)], 1)


def scheduled(model: Any, points: Points) -> Any:
    """A copy of a MODEL that takes its guidance as an input, with g by noise level. The last schedule on a
    MODEL counts.
    """
    guidance = guidance_input_of(model)
    wrapper = ScheduledGuidance(
        table_of(points, model.get_model_object("model_sampling")),
        0.0 if guidance is None else guidance.offset,
    )
    model = model.clone()
    # Among the options, which core calls before the model's own wrappers, such as that of an adapter.
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, wrapper, model.model_options, is_model_options=True)
    return model
