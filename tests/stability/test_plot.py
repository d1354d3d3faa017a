# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of a profile: its size, and that points stand where their sigmas are."""

from __future__ import annotations

import numpy as np
import torch

from dizzydiff.stability.plot import COLOURS, FOOT, LEFT, RIGHT, ROW, WIDTH, draw
from dizzydiff.stability.solvers import EULER

from .test_grids import linearized


def columns(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Columns in which a colour is found among two rows of points, where no names stand."""
    rows = image[-FOOT - 2 * ROW : -FOOT, LEFT:]
    return np.flatnonzero((rows == np.array(colour)).all(-1).any(0)) + LEFT


def test_points_stand_where_their_sigmas_are() -> None:
    r = linearized()
    middle = float((r.sigmas[0] * r.sigmas[-1]).sqrt())
    grids = {
        "ours": torch.tensor([float(r.sigmas[0]), middle, 0.0]),
        "other": torch.tensor([float(r.sigmas[0]), 0.0]),
    }
    picture = draw(r, EULER, grids)
    assert picture.width == WIDTH == 640
    pixels = np.asarray(picture)
    ours, other = (columns(pixels, COLOURS[i]) for i in (0, 1))
    assert other.min() < LEFT + 10
    assert other.max() < LEFT + 10
    right_of_start = ours[ours > LEFT + 10]
    assert abs(right_of_start.mean() - (LEFT + WIDTH - RIGHT) / 2) < 2
