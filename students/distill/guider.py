# SPDX-License-Identifier: GPL-3.0-or-later
"""A GUIDER as the teacher: what is asked of it before it is evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
from comfy.patcher_extension import WrappersMP

from ..errors import NoUnconditional
from .errors import OtherGuiderModel, UnknownDial, UnsupportedGuider
from .trainable import Prompts

PLAIN_DIALS = ("cfg",)
MOST_DIALS = 2
"""Signals that a student embeds."""
NEEDED = ("sample", "predict_noise", "original_conds", "model_patcher", "model_options")
"""Of core's CFGGuider, which guiders of other packs derive from."""
OF_THE_TEXT = {"cross_attn", "pooled_output", "attention_mask", "model_conds", "uuid"}
"""Keys of core's conditions that come with a prompt."""
OF_A_REGION = {
    *("area", "set_area_to_bounds", "mask", "mask_strength", "strength", "default"),
    *("start_percent", "end_percent", "timestep_start", "timestep_end"),
}
"""Keys that say where or when a prompt counts: the student's counts everywhere."""
NETWORKS = ("control", "hooks", "gligen")
"""Keys that bring a network of their own, of which the student would know nothing."""
PATCHER_PARTS = (
    *("object_patches", "weight_wrapper_patches", "wrappers", "callbacks", "injections"),
    *("attachments", "additional_models"),
)
"""Attributes of a ModelPatcher that come with it when it is loaded."""
WRAPPERS_OF_THE_NETWORK = {WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL}
"""Kinds that a call of the network passes through, whoever makes it."""


def dials_in(text: str) -> tuple[str, ...]:
    """The names in "cfg1, cfg2". Raises UnknownDial for more than two."""
    names = tuple(dict.fromkeys(re.findall(r"[^\s,;]+", text)))
    if len(names) > MOST_DIALS:
        raise UnknownDial(
            f'dials: got "{text}", {len(names)} names. Expected at most {MOST_DIALS}, such as "cfg": the '
            "guider's other numbers stay as they are."
        )
    return names


@dataclass(frozen=True)
class TeacherGuider:
    """A GUIDER, and the names of those of its numbers that become inputs of the student.

    Raises UnsupportedGuider, UnknownDial or NoUnconditional.
    """

    guider: Any
    dials: tuple[str, ...] = PLAIN_DIALS

    def __post_init__(self) -> None:
        lacking = [name for name in NEEDED if not hasattr(self.guider, name)]
        if lacking:
            raise UnsupportedGuider(
                f"{self.name} has no {' and no '.join(lacking)}. Expected a guider that derives from core's "
                "CFGGuider, such as that of the node CFG Guider."
            )
        numbers = self.numbers
        for dial in self.dials:
            if dial not in numbers:
                has = ", ".join(f"{name} ({value:g})" for name, value in numbers.items()) or "none"
                raise UnknownDial(
                    f"{self.name} has no number called {dial!r}. Its numbers are: {has}. Expected one or two "
                    "of them in dials, or nothing, to leave all as they are."
                )
        self._check_prompt()

    @property
    def name(self) -> str:
        return type(self.guider).__name__

    @property
    def numbers(self) -> dict[str, float]:
        """Its scalars, by name."""
        return {
            name: value
            for name, value in vars(self.guider).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.startswith("_")
        }

    @property
    def prompt(self) -> str:
        """The key of the condition that each prompt takes the place of."""
        conds = self.guider.original_conds
        return "positive" if "positive" in conds else next(iter(conds), "")

    def _check_prompt(self) -> None:
        conds = self.guider.original_conds
        if ("positive" not in conds and len(conds) != 1) or not conds.get(self.prompt):
            raise UnsupportedGuider(
                f"{self.name} has the conditions {', '.join(conds) or 'none'}. Expected one called positive, "
                "or a single one: the prompts take its place."
            )
        cores_own = type(self.guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        if cores_own and "cfg" in self.dials and not conds.get("negative"):
            raise NoUnconditional(
                f"{self.name} has no negative condition that cfg could weigh. Expected a guider with one, "
                "such as CFG Guider, or nothing in dials, to leave it as it is."
            )
        networks = {key for cond in conds[self.prompt] for key in NETWORKS if key in cond}
        if networks:
            raise UnsupportedGuider(
                f"The {self.prompt} condition of {self.name} holds {', '.join(sorted(networks))}, which the "
                "student would be trained without. Expected a plain prompt there."
            )

    def described(self) -> dict[str, Any]:
        """As plain values: what a file says of it, by which one training is told from another."""
        others = {name: value for name, value in self.numbers.items() if name not in self.dials}
        return {"class": type(self.guider).__qualname__, "dials": list(self.dials), "numbers": others}

    def conditioning(self, encoded: list) -> list:
        """The first prompt of a CONDITIONING with the options of the one it takes the place of, but for where
        and when that counts.
        """
        text, own = encoded[0]
        options = {
            key: value
            for key, value in self.guider.original_conds[self.prompt][0].items()
            if key not in OF_THE_TEXT | OF_A_REGION
        }
        return [[text, {**options, **own}]]

    def negative(self, teacher: Any) -> list | None:
        """The negative CONDITIONING where all is plain CFG."""
        if not self._is_plain(teacher):
            return None
        (cond,) = self.guider.original_conds["negative"]
        options = {
            key: value for key, value in cond.items() if key not in ("cross_attn", "model_conds", "uuid")
        }
        return [[cond.get("cross_attn"), options]]

    def _is_plain(self, teacher: Any) -> bool:
        """Whether it is core's CFG on the very ``teacher``: two predictions make it at every scale."""
        conds, model = self.guider.original_conds, self.guider.model_patcher
        options = self.guider.model_options
        return (
            type(self.guider) is comfy.samplers.CFGGuider
            and self.dials == PLAIN_DIALS
            and {key: len(each) for key, each in conds.items()} == {"positive": 1, "negative": 1}
            and not any((OF_A_REGION | {*NETWORKS}) & cond.keys() for each in conds.values() for cond in each)
            and not {key for key, value in options.items() if value} - {"transformer_options"}
            and alike(options, teacher.model_options)
            and same_patches(model, teacher)
            and {kind for kind, those in model.wrappers.items() if those} <= WRAPPERS_OF_THE_NETWORK
            and not options.get("transformer_options", {}).get("wrappers")
        )


def signals_of(guided: TeacherGuider | None) -> int:
    """How many scales the student takes; where nothing is a dial it takes one that changes nothing."""
    return max(1, len(PLAIN_DIALS if guided is None else guided.dials))


def conditionings(
    guided: TeacherGuider | None,
    texts: Iterable[str],
    encode: Callable[[str], list],
    negative: str,
    teacher: Any,
) -> Prompts:
    """What a TrainableStudent of ``teacher`` learns, with or without a guider, which has a negative prompt of
    its own.
    """
    if guided is None:
        return Prompts(map(encode, texts), encode(negative))
    return Prompts([guided.conditioning(encode(text)) for text in texts], guided.negative(teacher))


def check_model(guided: TeacherGuider, teacher: Any) -> None:
    """Raise OtherGuiderModel unless a guider guides the network and the weights of ``teacher``."""
    model = guided.guider.model_patcher
    if model.model is not teacher.model:
        raise OtherGuiderModel(
            f"{guided.name} guides another model than the one that is distilled. Expected the same: connect "
            "one MODEL to both nodes."
        )
    if {*model.patches} != {*teacher.patches} or (
        model.patches and model.patches_uuid != teacher.patches_uuid
    ):
        raise OtherGuiderModel(
            f"The model of {guided.name} has other LoRAs or weight patches than the one that is distilled. "
            "Expected the same: apply them before the MODEL goes to both nodes."
        )


def same_patches(one: Any, other: Any) -> bool:
    """Whether two MODELs of one network are the same when loaded."""
    return all(alike(getattr(one, part, None), getattr(other, part, None)) for part in PATCHER_PARTS)


def alike(one: Any, other: Any) -> bool:
    """Whether nested values hold the same: numbers and text by value, anything else by identity."""
    if one is other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and type(one) is type(other) and not isinstance(one, str):
        return len(one) == len(other) and all(map(alike, one, other))
    return isinstance(one, (int, float, str)) and type(one) is type(other) and one == other
