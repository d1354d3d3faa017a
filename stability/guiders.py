# SPDX-License-Identifier: GPL-3.0-or-later
"""What is connected to a node: a GUIDER, or a model with its conditionings, and which guider was measured."""

from __future__ import annotations

from typing import Any

from .errors import NothingToMeasure
from .identity import PLACES, Unreadable, conditioning_digest, digest_of, identity
from .subject import Subject

OF_A_RUN = ("inner_model", "conds", "loaded_models")
"""Attributes that a guider has while it samples."""


def subject_of(
    model: Any, positive: list | None, negative: list | None, cfg: float, guider: Any, latent: dict[str, Any]
) -> Subject:
    """What is connected to a node: a GUIDER, or a model with its conditionings, of which the negative one is
    not used at CFG 1. Raises NothingToMeasure.
    """
    if guider is not None:
        return Subject(guider.model_patcher, [], [], 1.0, latent, guider=guider)
    missing = [name for name, value in (("model", model), ("positive", positive)) if value is None]
    if negative is None and cfg != 1:
        missing.append(f"negative, which cfg {cfg:g} uses")
    if missing:
        raise NothingToMeasure(
            f"Not connected: {', '.join(missing)}; expected a guider, or model, positive and negative "
            "(not needed at cfg 1)."
        )
    return Subject(model, positive or [], negative or [], cfg, latent)


def guider_identity(guider: Any) -> str:
    """64 hexadecimal digits of a GUIDER: its MODEL, the code of its prediction, its numbers, and how its
    conditionings change the model, as ``conditioning_digest`` has it. Raises Unreadable.
    """
    if not hasattr(guider, "__dict__"):
        raise Unreadable(f"the guider is of type {type(guider).__qualname__}, which shows nothing of itself")
    held = {name: value for name, value in vars(guider).items() if name not in (*OF_A_RUN, "model_patcher")}
    options, conditions = held.pop("model_options", {}), held.pop("original_conds", {})
    return digest_of(
        [
            identity(guider.model_patcher),
            {key: value for key, value in options.items() if key not in PLACES},
            type(guider).__mro__,
            getattr(type(guider), "predict_noise", None),
            {name: conditioning_digest(each) for name, each in conditions.items()},
            held,
        ]
    )
