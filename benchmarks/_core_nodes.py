# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes of ComfyUI itself that patch a MODEL or make a GUIDER or SAMPLER, found by what they say they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from .networks.subject import Subject

KINDS = ("MODEL", "GUIDER", "SAMPLER")
WIDGETS = ("INT", "FLOAT", "BOOLEAN", "STRING")
CHOICES: dict[str, dict[str, Any]] = {
    "CFGOverride": {"cfg": 1.0, "start_percent": 0.0, "end_percent": 0.5},
    "EasyCache": {"reuse_threshold": 0.5},
    "LazyCache": {"reuse_threshold": 0.5},
    "APG": {"momentum": -0.5},
    "ModelComputeDtype": {"dtype": "bf16"},
    "UNetCrossAttentionMultiply": {"q": 1.5, "out": 1.2},
    "UNetSelfAttentionMultiply": {"q": 1.5, "out": 1.2},
    "SkipLayerGuidanceDiT": {"double_layers": "0", "single_layers": "0", "scale": 2.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": "0"},
    "SkipLayerGuidanceSD3": {"layers": "0", "scale": 2.0},
}
"""Inputs with which a node acts on small networks within a few steps, where its defaults do not."""
LEFT_OUT = {"TorchCompileModel": "compiles for minutes"}


class Lacking(Exception):
    """An input of a node that nothing here can stand for."""


def node_classes() -> dict[str, type]:
    """All of core's node classes that give one of KINDS and want a MODEL, or none at all for a SAMPLER."""
    import nodes

    asyncio.run(nodes.init_builtin_extra_nodes())
    return {
        name: kind
        for name, kind in sorted(nodes.NODE_CLASS_MAPPINGS.items())
        if (made := gives(kind)) and (made == "SAMPLER" or "MODEL" in wanted(kind).values())
    }


def gives(kind: type) -> str | None:
    """Which of KINDS a node gives first, if any."""
    outputs = [str(output) for output in getattr(kind, "RETURN_TYPES", ())]
    return next((output for output in outputs if output in KINDS), None)


def sockets(kind: Any) -> Iterator[tuple[str, str, Any, Mapping[str, Any]]]:
    """(required or optional, name, type or choices, settings) of each input of a node."""
    inputs = kind.INPUT_TYPES()
    for group in ("required", "optional"):
        for name, (what, *settings) in inputs.get(group, {}).items():
            yield group, name, what, settings[0] if settings else {}


def wanted(kind: type) -> dict[str, str]:
    return {name: str(what) for _, name, what, _ in sockets(kind)}


def make(name: str, kind: Any, subject: Subject, model: Any) -> Any:
    """What the node gives for a subject's MODEL and conditioning. Raises :class:`Lacking`."""
    inputs = {}
    for group, socket, what, settings in sockets(kind):
        try:
            inputs[socket] = _value(socket, what, settings, subject, model)
        except Lacking:
            if group == "required":
                raise
    result = getattr(kind(), kind.FUNCTION)(**inputs | CHOICES.get(name, {}))
    values = getattr(result, "result", result)
    return values[[str(output) for output in kind.RETURN_TYPES].index(str(gives(kind)))]


def _value(name: str, what: Any, settings: Mapping[str, Any], subject: Subject, model: Any) -> Any:
    choices = what if isinstance(what, list) else settings.get("options") if what == "COMBO" else None
    if choices is not None:
        if not choices:
            raise Lacking(f"there is nothing to choose for {name}")
        return settings.get("default", choices[0])
    if what in WIDGETS:
        return settings.get("default", {"STRING": "", "BOOLEAN": False}.get(what, settings.get("min", 0)))
    links = {
        "MODEL": lambda: model,
        "CONDITIONING": lambda: (
            subject.negative if name.startswith(("negative", "empty")) else subject.positive
        ),
        "LATENT": subject.latent,
        "LATENT_OPERATION": lambda: lambda latent, **_: 0.9 * latent,
    }
    if what not in links:
        raise Lacking(f"{name} wants a {what}")
    return links[what]()
