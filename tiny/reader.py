# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads pictures of the embedded pipeline's world by plain image analysis: what shapes, colours and relations
they show.

No network and no prompt is involved, so prompt accuracy is exact: a picture satisfies its caption when
:func:`read` finds just as many shapes as the caption names, each of the right colour, shape and (where said)
size, standing as the caption says. A blurred, broken, overlapping or off-colour shape is read as unknown and
fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from . import scene

COLOUR_TOLERANCE = 60.0
"""Farthest RGB distance (0-255 scale) at which a colour still has its name; the nearest two names are 102
apart.
"""
SHAPE_AGREEMENT = 0.85
"""Least intersection over union with the ideal shape in the same bounding box."""
SPECK = 12
"""Foreground regions of fewer pixels are dust, not shapes."""
SIZE_BORDER = (scene.SIZES["small"][1] + scene.SIZES["large"][0]) / 2


@dataclass(frozen=True)
class Reading:
    """What a picture shows; a ``background`` or an attribute that has no name is ``"unknown"``."""

    background: str
    shapes: tuple[scene.Placed, ...]


def _name(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    distance = {name: float(np.linalg.norm(colour - np.array(value))) for name, value in palette.items()}
    nearest = min(distance, key=distance.__getitem__)
    return nearest if distance[nearest] <= COLOUR_TOLERANCE else "unknown"


def _shape(mask: np.ndarray) -> str:
    """The shape that best agrees with a mask cut to its bounding box."""
    height, width = mask.shape
    if not 0.8 <= width / height <= 1.25:
        return "unknown"
    y, x = (np.mgrid[0:height, 0:width] + 0.5) / np.array([height, width]).reshape(2, 1, 1)
    ideal = {
        "circle": (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25,
        "square": np.ones_like(mask),
        "triangle": 2 * np.abs(x - 0.5) <= y,
    }
    agreement = {name: (mask & form).sum() / (mask | form).sum() for name, form in ideal.items()}
    best = max(agreement, key=agreement.__getitem__)
    return best if agreement[best] >= SHAPE_AGREEMENT else "unknown"


def read(image: Image.Image) -> Reading:
    """What a picture (RGB, any size; read at SIDE x SIDE) shows."""
    if image.size != (scene.SIDE, scene.SIDE):
        image = image.resize((scene.SIDE, scene.SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    edges = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    ground = np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)
    regions, _ = ndimage.label(np.linalg.norm(pixels - ground, axis=-1) > COLOUR_TOLERANCE)
    shapes = []
    for index, box in enumerate(ndimage.find_objects(regions), start=1):
        mask = regions[box] == index
        if mask.sum() < SPECK:
            continue
        inside = ndimage.binary_erosion(mask, iterations=2)
        colour = np.median(pixels[box][inside if inside.any() else mask], axis=0)
        rows, columns = box
        width = (mask.shape[0] + mask.shape[1]) / 2
        centre = ((columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2)
        shapes.append(scene.Placed(_name(colour, scene.COLOURS), _shape(mask), *centre, width))
    return Reading(_name(ground, scene.BACKGROUNDS), tuple(shapes))


def _shows(shape: scene.Placed, thing: scene.Thing) -> bool:
    size = "small" if shape.width < SIZE_BORDER else "large"
    return (shape.colour, shape.shape) == (thing.colour, thing.shape) and thing.size in (None, size)


def satisfies(caption: scene.Caption | str, reading: Reading) -> bool:
    """Whether the picture shows what the caption says: everything in it, and no shape more."""
    if isinstance(caption, str):
        caption = scene.parse(caption)
    if reading.background != caption.background or len(reading.shapes) != len(caption.things):
        return False
    orders = (reading.shapes, reading.shapes[::-1])
    return any(
        all(_shows(shape, thing) for shape, thing in zip(order, caption.things, strict=True))
        and scene.fits(caption, order)
        for order in orders
    )


def accuracy(captions: Sequence[scene.Caption], images: Sequence[Image.Image]) -> float:
    """Share of pictures that satisfy their captions."""
    return sum(
        satisfies(caption, read(image)) for caption, image in zip(captions, images, strict=True)
    ) / len(captions)


def spread(images: Sequence[Image.Image]) -> float:
    """Diversity: root mean square distance of the first shape's centre from its mean over pictures of one
    caption, pixels.
    """
    return _deviation([(shapes[0].x, shapes[0].y) for image in images if (shapes := read(image).shapes)])


def size_spread(images: Sequence[Image.Image]) -> float:
    """Diversity: standard deviation of the first shape's width over pictures of one caption, pixels."""
    return _deviation([(shapes[0].width,) for image in images if (shapes := read(image).shapes)])


def _deviation(points: Sequence[tuple[float, ...]]) -> float:
    """Root mean square distance from the mean; 0 where there is none."""
    values = np.array(points)
    return float(np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=1).mean())) if len(values) else 0.0
