# SPDX-License-Identifier: GPL-3.0-or-later
"""Any SIGMAS as a picture that is read at the width of a node, or one clear error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dizzydiff.stability.drawing import COLOURS, LEFT, RIGHT, TEXT_SIZE, WIDTH
from dizzydiff.stability.errors import BadSigmas
from dizzydiff.stability.foretold import Unforetellable, percent, relative_error
from dizzydiff.stability.sigmas_plot import PANEL, TOP, Grid, draw_sigmas, read_sigmas
from dizzydiff.stability.solvers import DPMPP_2M, EULER, HEUN

from .test_grids import linearized

NODE_WIDTH = 400
"""Of a node in the editor, pixels."""
KARRAS = torch.tensor([14.6, 6.3, 2.4, 0.8, 0.2, 0.03, 0.0]).double()
PLAIN = torch.tensor([20.0, 15.0, 10.0, 5.0, 0.0]).double()
KINDS = {
    "falling": KARRAS,
    "not to zero": KARRAS[:-1],
    "rising": KARRAS.flip(0),
    "of a flow": torch.linspace(1, 0, 9).double(),
    "single": torch.tensor([0.5]).double(),
    "zero alone": torch.zeros(1).double(),
    "the same twice": torch.tensor([1.0, 1.0]).double(),
    "empty": torch.zeros(0).double(),
    "long": torch.linspace(10, 0, 1001).double(),
}


def pixels(grids: list[Grid]) -> np.ndarray:
    return np.asarray(draw_sigmas(grids))


def inked(picture: np.ndarray, row: int, rows: int) -> np.ndarray:
    """Rows and columns [n, 2] in a grid's colour, inside the panel that stands below so many lines."""
    top = TOP + 30 * rows
    panel = picture[top : top + PANEL, LEFT : WIDTH - RIGHT]
    return np.argwhere((panel == np.array(COLOURS[row])).all(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_sigmas_is_drawn_beside_a_plain_one(kind: str) -> None:
    picture = pixels([Grid("plain", PLAIN), Grid(kind, KINDS[kind])])
    assert picture.shape[1] == WIDTH
    assert len(inked(picture, 0, 2)) > 500
    assert bool(len(inked(picture, 1, 2))) == (kind != "empty")
    assert pixels([Grid(kind, KINDS[kind])]).shape[1] == WIDTH, "and alone"


def test_letters_and_curves_are_large_enough_at_the_width_of_a_node() -> None:
    scale = NODE_WIDTH / WIDTH
    assert TEXT_SIZE * scale >= 13
    columns = inked(pixels([Grid("", KARRAS[:2])]), 0, 1)[:, 1]
    thickness = np.bincount(columns)[100:-100]
    assert thickness.mean() * scale >= 2


def test_a_curve_falls_from_left_to_right_and_ends_on_the_line_of_zero() -> None:
    places = inked(pixels([Grid("", KARRAS)]), 0, 1)
    first, last = places[places[:, 1].argmin()], places[places[:, 1].argmax()]
    assert first[0] < 40 and last[0] > PANEL - 40
    steps = inked(pixels([Grid("", KARRAS), Grid("", KARRAS[3:])]), 1, 2)
    assert steps[:, 1].max() == pytest.approx((WIDTH - LEFT - RIGHT) / 2, abs=12), "3 of 6 steps"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([1.0, math.nan, 0.0]), "sigma 1 is nan"),
        (torch.tensor([math.inf, 0.0]), "sigma 0 is inf"),
        (torch.tensor([1.0, -0.5]), "sigma 1 is -0.5"),
        (torch.zeros(2, 3), "shape \\[2, 3\\]"),
        ("many", "got str"),
        (None, "got NoneType"),
    ],
)
def test_what_are_no_sigmas_is_said(value: object, said: str) -> None:
    with pytest.raises(BadSigmas, match=f"third: .*{said}.*expected"):
        read_sigmas("third", value)


def test_more_steps_are_foretold_to_err_less() -> None:
    model = linearized()
    top, bottom = float(model.sigmas[0]), float(model.sigmas[-1])
    for solver in (EULER, DPMPP_2M, HEUN):
        errors = [
            relative_error(
                model,
                torch.cat([torch.logspace(math.log10(top), math.log10(bottom), n), torch.zeros(1)]).double(),
                solver,
            )
            for n in (4, 12, 36)
        ]
        assert 2**0.5 > errors[0] > errors[1] > errors[2] > 0


def test_nothing_is_foretold_of_what_was_not_measured() -> None:
    model = linearized()
    top = float(model.sigmas[0])
    good = torch.tensor([top, top / 3, 0.0])
    assert relative_error(model, good, EULER) < relative_error(model, torch.tensor([top, 0.0]), EULER)
    assert relative_error(model, torch.tensor([top / 3, 0.0]), EULER) > 0, "as with a denoise below 1"
    for bad in (good[:2], good.flip(0), good[:1], good * 3, torch.tensor([top, 1e-9, 0.0])):
        with pytest.raises(Unforetellable):
            relative_error(model, bad, EULER)


def test_errors_are_said_to_two_digits() -> None:
    assert [percent(error) for error in (0.0012345, 0.0312, 0.256, 1.2)] == [
        "0.12 %",
        "3.1 %",
        "26 %",
        "over 70 %",
    ]
