# SPDX-License-Identifier: GPL-3.0-or-later
"""What the drafting nodes share: inputs, the name that one of them had, and the words they are found by."""

from typing import Any

from comfy_api.latest import io

from ..drafting.policies import MODES
from .inputs import check_range

TOLERANCE = 0.01
MOST_PREDICTIONS = 64
OLD_NAME = "width"
"""What ``predictions_per_round`` was called."""
FASTER = [
    "faster",
    "speed up",
    "accelerate",
    "multi gpu",
    "multigpu",
    "dual gpu",
    "two gpus",
    "parallel",
    "draft",
    "speculative",
    "加速",
    "提速",
    "并行",
    "多卡",
    "多显卡",
]
"""What users search who want their sampler to be faster."""


def mode() -> io.Combo.Input:
    return io.Combo.Input(
        "mode",
        options=list(MODES),
        default="verified",
        tooltip="verified: a draft too far from where the sampler arrives is dropped and drafted again. "
        "aggressive: drafts are always used, and the picture may become another. conservative: so, but every "
        "second round evaluates one state.",
    )


def predictions_per_round(tooltip: str, advanced: bool = False) -> io.Int.Input:
    # Optional, since prompts that say OLD_NAME do not have it. So is what follows it: the editor's files know
    # a widget by its place, and optional ones come last.
    return io.Int.Input(
        "predictions_per_round",
        default=0,
        min=0,
        max=MOST_PREDICTIONS,
        optional=True,
        advanced=advanced,
        tooltip=tooltip,
    )


def of_this_sampler() -> io.Int.Input:
    return predictions_per_round(
        "Only for this sampler, other than Draft Devices says. 0: as it says. 1: nothing is drafted.",
        advanced=True,
    )


def tolerance() -> io.Float.Input:
    return io.Float.Input(
        "tolerance",
        default=TOLERANCE,
        min=0.0,
        max=1.0,
        step=0.001,
        round=0.0001,
        optional=True,
        tooltip="For verified: how far each prediction may be off, relative to the data of the model. The "
        "picture is off by less, as a rule. 0 samples step by step.",
    )


def of_either_name(given: int, others: dict[str, Any]) -> int:
    """What the node was given, by today's name or by the old one."""
    return others.get(OLD_NAME, given)


def check_old_name(width: Any) -> bool | str:
    """For validate_inputs: core does not check an input that it does not know."""
    if width is not None and not isinstance(width, int):
        return f"{OLD_NAME}: got {width!r}; expected a whole number from 0 to {MOST_PREDICTIONS}."
    return check_range(OLD_NAME, width, 0, MOST_PREDICTIONS)
