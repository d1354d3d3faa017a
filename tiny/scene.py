# SPDX-License-Identifier: GPL-3.0-or-later
"""The world of the embedded pipeline: captions of one or two flat shapes, and Pillow drawings of them.

A caption fixes some attributes ("a small red circle left of a blue square on white") and leaves the rest open
(here the size of the square and every exact position); :func:`draw` fills in what is open at random.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 96
"""Side of a picture, pixels."""

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 50),
    "purple": (150, 50, 190),
}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (128, 128, 128), "black": (16, 16, 16)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": (19, 23), "large": (33, 38)}
"""Width and height of a shape, pixels (lowest, highest)."""
RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
HELD_OUT = frozenset({("blue", "triangle"), ("yellow", "circle")})
"""(colour, shape) pairs that no training caption shows."""

MARGIN, GAP = 2, 5
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """What a caption says of one shape; ``size`` None leaves it open."""

    colour: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        return f"a {self.size + ' ' if self.size else ''}{self.colour} {self.shape}"


@dataclass(frozen=True)
class Caption:
    """One thing with an optional place, or two things with a relation of the first to the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None
    place: str | None = None

    def __str__(self) -> str:
        where = f" {self.place}" if self.place else ""
        second = f" {self.relation} {self.things[1]}" if self.relation else ""
        return f"{self.things[0]}{second}{where} on {self.background}"

    @property
    def held_out(self) -> bool:
        """Whether a thing of this caption is of a pair kept out of training."""
        return any((thing.colour, thing.shape) in HELD_OUT for thing in self.things)


@dataclass(frozen=True)
class Placed:
    """A shape on the canvas: its centre and its width (= height), pixels."""

    colour: str
    shape: str
    x: float
    y: float
    width: float


_THING = (
    rf"an? (?:(?P<size{{0}}>{'|'.join(SIZES)}) )?(?P<colour{{0}}>{'|'.join(COLOURS)}) "
    rf"(?P<shape{{0}}>{'|'.join(SHAPES)})"
)
_CAPTION = re.compile(
    _THING.format(1)
    + rf"(?: (?P<relation>{'|'.join(RELATIONS)}) "
    + _THING.format(2)
    + rf")?(?: (?P<place>{'|'.join(PLACES)}))? on (?P<background>{'|'.join(BACKGROUNDS)})"
)


def parse(text: str) -> Caption:
    """The caption that ``text`` spells. Raises ValueError for anything outside this world's grammar."""
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        example = "a small red circle left of a blue square on white"
        raise ValueError(
            f"not a caption of the embedded pipeline: {text!r}; expected for example {example!r}"
        )
    part = match.groupdict()
    things = tuple(
        Thing(part[f"colour{i}"], part[f"shape{i}"], part[f"size{i}"]) for i in (1, 2) if part[f"colour{i}"]
    )
    return Caption(things, part["background"], part["relation"], part["place"])


def random_caption(rng: random.Random, things: int, held_out: bool = False) -> Caption:
    """A caption of ``things`` (1 or 2) shapes; with ``held_out`` the first one is of a pair kept out of
    training, else none is.
    """

    def thing(pairs: Sequence[tuple[str, str]]) -> Thing:
        return Thing(*rng.choice(pairs), rng.choice((None, *SIZES)))

    seen = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT]
    first = thing(sorted(HELD_OUT) if held_out else seen)
    background = rng.choice(tuple(BACKGROUNDS))
    if things == 1:
        return Caption((first,), background, place=rng.choice((None, *PLACES)))
    second = thing([pair for pair in seen if pair != (first.colour, first.shape)])
    return Caption((first, second), background, relation=rng.choice(RELATIONS))


def fits(caption: Caption, placed: Sequence[Placed]) -> bool:
    """Whether shapes at these centres stand as the caption's relation or place says."""
    if caption.relation:
        dx, dy = placed[1].x - placed[0].x, placed[1].y - placed[0].y
        along, across = (dx, dy) if caption.relation in ("left of", "right of") else (dy, dx)
        return (along if caption.relation in ("left of", "above") else -along) > abs(across)
    if caption.place:
        return place_of(placed[0]) == caption.place
    return True


def place_of(placed: Placed) -> str:
    """The name of the place where a lone shape stands: the middle ninth, else the side it is nearest to."""
    dx, dy = placed.x - SIDE / 2, placed.y - SIDE / 2
    if max(abs(dx), abs(dy)) < SIDE / 9:
        return "in the middle"
    if abs(dx) >= abs(dy):
        return "on the left" if dx < 0 else "on the right"
    return "at the top" if dy < 0 else "at the bottom"


def _apart(one: Placed, other: Placed) -> bool:
    return max(abs(one.x - other.x), abs(one.y - other.y)) >= (one.width + other.width) / 2 + GAP


def _clear(caption: Caption, placed: Sequence[Placed]) -> bool:
    """Training pictures keep away from the borders of the words: a relation or place that 4 pixels would not
    change.
    """
    if len(placed) == 2 and not _apart(*placed):
        return False
    first, rest = placed[0], tuple(placed[1:])
    moves = ((0, 0), (4, 0), (-4, 0), (0, 4), (0, -4))
    return all(
        fits(caption, (Placed(first.colour, first.shape, first.x + dx, first.y + dy, first.width), *rest))
        for dx, dy in moves
    )


def lay_out(caption: Caption, rng: random.Random) -> tuple[Placed, ...]:
    """Random sizes and places that satisfy the caption, by rejection."""
    while True:
        placed = []
        for thing in caption.things:
            width = rng.uniform(*SIZES[thing.size or rng.choice(tuple(SIZES))])
            low, high = MARGIN + width / 2, SIDE - MARGIN - width / 2
            placed.append(
                Placed(thing.colour, thing.shape, rng.uniform(low, high), rng.uniform(low, high), width)
            )
        if _clear(caption, placed):
            return tuple(placed)


def paint(placed: Sequence[Placed], background: str) -> Image.Image:
    """The drawing, RGB, SIDE x SIDE, edges smoothed by supersampling."""
    k = SUPERSAMPLING
    image = Image.new("RGB", (SIDE * k, SIDE * k), BACKGROUNDS[background])
    pen = ImageDraw.Draw(image)
    for shape in placed:
        left, top = (shape.x - shape.width / 2) * k, (shape.y - shape.width / 2) * k
        right, bottom = left + shape.width * k - 1, top + shape.width * k - 1
        fill = COLOURS[shape.colour]
        if shape.shape == "circle":
            pen.ellipse((left, top, right, bottom), fill=fill)
        elif shape.shape == "square":
            pen.rectangle((left, top, right, bottom), fill=fill)
        else:
            pen.polygon(((left, bottom), (right, bottom), ((left + right) / 2, top)), fill=fill)
    return image.reduce(k)


def draw(caption: Caption, rng: random.Random) -> Image.Image:
    """A random picture of the caption."""
    return paint(lay_out(caption, rng), caption.background)
