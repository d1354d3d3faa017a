# SPDX-License-Identifier: GPL-3.0-or-later
"""The word for whoever samples a student with CFG: its guidance is an input, so it would be guided twice."""

from typing import Any

from comfy.patcher_extension import WrappersMP

from ..common.messages import Say, both, warn
from ..students.student_model import takes_guidance
from .notice import show_at_node

KEY = "dizzydiff_cfg"


def warning_of_cfg(model: Any) -> Any:
    """The MODEL; a student warns where any sampler samples it with a cfg other than 1."""
    if not takes_guidance(model):
        return model
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _warn)
    return model


def warn_of_cfg(model: Any, cfg: float, say: Say) -> Any:
    """As :func:`warning_of_cfg`, at once and by ``say``; the MODEL warns no more."""
    if cfg == 1 or not takes_guidance(model):
        return model
    say(_sentence(cfg))
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    return model


def _warn(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """An OUTER_SAMPLE wrapper; of a guider that has no cfg nothing is known."""
    if (cfg := getattr(executor.class_obj, "cfg", 1.0)) != 1:
        both(warn, show_at_node)(_sentence(cfg))
    return executor(*args, **kwargs)


def _sentence(cfg: float) -> str:
    return (
        f"cfg is {cfg:g}, and this model takes its guidance as an input: it is guided twice, in two passes a "
        "step, and the picture burns. Set cfg to 1, and the guidance with Student Guidance or FluxGuidance."
    )
