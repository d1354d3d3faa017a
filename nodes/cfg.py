# SPDX-License-Identifier: GPL-3.0-or-later
"""The word for whoever guides a model the wrong way: a student with CFG, which is guided twice, or by a
guidance a model that takes none.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ..common.messages import Say, both, warn
from ..students.student_model import ignores_guidance, takes_guidance
from .notice import show_at_node

KEY = "dizzydiff_cfg"


def warning_of_guidance(model: Any) -> Any:
    """A copy of the MODEL that warns wherever any sampler guides it the wrong way."""
    model = without_warning(model)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _warn)
    return model


def warn_of_guidance(model: Any, cfg: float, positive: list, say: Say) -> Any:
    """As :func:`warning_of_guidance`, at once and by ``say``; the MODEL warns no more.

    positive: conditioning as nodes pass it.
    """
    for sentence in _wrong(model, cfg, (options for _, options in positive)):
        say(sentence)
    return without_warning(model)


def without_warning(model: Any) -> Any:
    """A copy of the MODEL as it was before :func:`warning_of_guidance`."""
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    return model


def without_guidance(guidance: Any) -> str:
    """What is said of a model that takes no guidance, and is given this one."""
    scales = torch.as_tensor(guidance).reshape(-1).tolist()
    return (
        f"The conditioning has a guidance of {', '.join(f'{g:g}' for g in scales)}, and this model takes "
        "none as an input: it has no effect. Guide this model with the cfg of the sampler."
    )


def _warn(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """An OUTER_SAMPLE wrapper; of a guider that has no cfg nothing is known."""
    guider = executor.class_obj
    conditions = (each for group in guider.conds.values() for each in group)
    for sentence in _wrong(guider.model_patcher, getattr(guider, "cfg", 1.0), conditions):
        both(warn, show_at_node)(sentence)
    return executor(*args, **kwargs)


def _wrong(model: Any, cfg: float, conditions: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the guidance of a MODEL that is sampled with these conditions, if anything."""
    if cfg != 1 and takes_guidance(model):
        yield (
            f"cfg is {cfg:g}, and this model takes its guidance as an input: it is guided twice, in two "
            "passes a step, and the picture burns. Set cfg to 1, and the guidance with Student Guidance or "
            "FluxGuidance."
        )
    given = next((each["guidance"] for each in conditions if each.get("guidance") is not None), None)
    if given is not None and ignores_guidance(model):
        yield without_guidance(given)
