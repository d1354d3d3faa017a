# SPDX-License-Identifier: GPL-3.0-or-later
"""What a small network is: its family, its settings, its latent, and what it is conditioned on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """A part of a conditioning that ``make`` draws: another for each prompt, or one for all."""

    make: Callable[[torch.Generator], Any]
    per_prompt: bool


def words(*shape: int) -> Drawn:
    """Normal numbers of this shape that differ between prompts, as what a text encoder gives does."""
    return Drawn(lambda g: torch.randn(shape, generator=g), per_prompt=True)


def picture(*shape: int) -> Drawn:
    """Normal numbers of this shape that are the same for all prompts, as what an image gives is."""
    return Drawn(lambda g: torch.randn(shape, generator=g), per_prompt=False)


def tokens(*shape: int, below: int) -> Drawn:
    """Token ids of this shape that differ between prompts."""
    return Drawn(lambda g: torch.randint(1, below, shape, generator=g), per_prompt=True)


def mask(*shape: int) -> Drawn:
    """Zeros and ones."""
    return Drawn(lambda g: (torch.randn(shape, generator=g) > 0).float(), per_prompt=False)


def all_tokens(count: int) -> Drawn:
    """An attention mask [1, count] that leaves none out."""
    return Drawn(lambda g: torch.ones(1, count, dtype=torch.long), per_prompt=False)


def after_first(frames: int, size: int) -> Drawn:
    """A mask [1, 1, frames, size, size] that leaves the first frame out."""
    return Drawn(lambda g: _after_first(1, frames, size), per_prompt=False)


def constant(values: Sequence[float]) -> Drawn:
    """A tensor of these values."""
    return Drawn(lambda g: torch.tensor(values), per_prompt=False)


def clip_vision(**outputs: Any) -> SimpleNamespace:
    """What a CLIP vision encoder gives; core reads its attributes."""
    return SimpleNamespace(**outputs)


def settings(*bases: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """The settings of ``bases``, the later over the earlier, and ``own`` over all."""
    joined: dict[str, Any] = {}
    for each in (*bases, own):
        joined.update(each)
    return joined


@dataclass(frozen=True)
class Network:
    """A small network of one of core's families, and what it is asked.

    ``family`` is a class of ``comfy.supported_models``, ``config`` what that class reads from a checkpoint,
    ``weights`` what its constructor wants from the checkpoint beside the network. ``latent`` is the shape of
    one row, a list of shapes where a latent has several parts. ``text`` is (tokens, width) of the prompt;
    ``conditioning`` holds what else a node would put beside it.
    """

    family: str
    config: Mapping[str, Any]
    latent: Shape | list[Shape]
    text: tuple[int, int]
    conditioning: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    weights: Callable[[], Mapping[str, Tensor]] = dict
    keeps_first_frame: bool = False
    starts_from_latent: bool = False
    frames_as_rows: int = 1
    cfgs: tuple[float, ...] = (1.0, 4.0)
    rows: tuple[int, ...] = (1, 2)

    @property
    def name(self) -> str:
        return f"{self.family} ({self.variant})" if self.variant else self.family

    @property
    def parts(self) -> list[Shape]:
        """Shapes of a row's parts."""
        return self.latent if isinstance(self.latent, list) else [self.latent]

    def prompt(self, number: int) -> list[list[Any]]:
        """CONDITIONING number 0 (positive), 1 (negative), ..."""
        text = _draw(words(1, *self.text), "text", number)
        return [[text, {key: _draw(value, key, number) for key, value in self.conditioning.items()}]]

    def latent_rows(self, rows: int) -> list[Tensor]:
        """The parts of a latent of this many rows: empty, or normal where sampling starts from a picture."""
        shapes = [(rows * self.frames_as_rows, *shape) for shape in self.parts]
        if self.keeps_first_frame or self.starts_from_latent:
            generator = torch.Generator().manual_seed(61)
            return [torch.randn(shape, generator=generator) for shape in shapes]
        return [torch.zeros(shape) for shape in shapes]

    def noise_mask(self, rows: int) -> Tensor | None:
        """Where the latent is drawn anew."""
        return _after_first(rows, *self.parts[0][-3:-1]) if self.keeps_first_frame else None


def _after_first(rows: int, frames: int, size: int) -> Tensor:
    mask = torch.ones(rows, 1, frames, size, size)
    mask[:, :, 0] = 0
    return mask


def _draw(value: Any, key: str, number: int) -> Any:
    """``value`` with all that is to be drawn in it drawn, by its place and, where it differs, the prompt."""
    if isinstance(value, Drawn):
        seed = zlib.crc32(key.encode()) + (number if value.per_prompt else 0)
        return value.make(torch.Generator().manual_seed(seed))
    if isinstance(value, list):
        return [_draw(each, f"{key}.{i}", number) for i, each in enumerate(value)]
    if isinstance(value, dict):
        return {name: _draw(each, f"{key}.{name}", number) for name, each in value.items()}
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**_draw(vars(value), key, number))
    return value
