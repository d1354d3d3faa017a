# SPDX-License-Identifier: GPL-3.0-or-later
"""Which model was measured: the key that a profile is kept under."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ..common.fingerprint import fingerprint


def identity(model: Any) -> str:
    """A hash of the weights as they are in the file, of every patch upon them, of wrappers and what they
    hold, and of the names of other patches.
    """
    keys = model.get_key_patches("diffusion_model.")
    digest = hashlib.sha256(f"{type(model.model).__name__} {fingerprint(model)}".encode())
    for name, (_, *patches) in sorted(keys.items()):
        if patches:
            digest.update(f"{name} {digest_of(patches)}".encode())
    for kind, keyed in sorted(model.wrappers.items()):
        for key, wrappers in sorted(keyed.items(), key=str):
            for wrapper in wrappers:
                held = [digest_of(value) for _, value in sorted(getattr(wrapper, "__dict__", {}).items())]
                digest.update(
                    f"{kind} {key} {getattr(wrapper, '__qualname__', type(wrapper).__name__)} {held}".encode()
                )
    digest.update(repr(sorted(_names(model.model_options))).encode())
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Of numbers, text and samples of tensors, however nested."""
    if isinstance(value, Tensor):
        few = value.detach().flatten()[:: max(1, value.numel() // 32)].float().cpu()
        return f"{tuple(value.shape)} {hashlib.sha256(few.numpy().tobytes()).hexdigest()}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(digest_of(item) for item in value)}]"
    if value is None or isinstance(value, (int, float, str, bool)):
        return repr(value)
    return f"{type(value).__name__} {digest_of(getattr(value, 'weights', None))}"


def _names(options: Any, path: str = "") -> Iterator[str]:
    if isinstance(options, dict):
        for key, value in options.items():
            yield from _names(value, f"{path}/{key}")
    elif isinstance(options, (list, tuple)):
        yield f"{path} {len(options)}"
    elif isinstance(options, (int, float, str, bool)):
        yield f"{path} {options}"
    elif isinstance(options, Callable):  # type: ignore[arg-type]
        yield f"{path} {getattr(options, '__qualname__', type(options).__name__)}"
