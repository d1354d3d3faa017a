# SPDX-License-Identifier: GPL-3.0-or-later
"""How many steps are enough, from foretold errors."""

from __future__ import annotations

import numpy as np
import pytest

from dizzydiff.stability.drawing import COLOURS, WIDTH
from dizzydiff.stability.steps import COUNTS, MOST_STEPS, Forecast, draw_forecast, forecast


def falling(n: int) -> float:
    return 2.0 * n**-1.5


def test_the_fewest_steps_are_the_first_within_the_tolerance() -> None:
    told = forecast(falling)
    for tolerance in (0.5, 0.1, 0.05, 0.02):
        n = told.fewest(tolerance)
        assert n is not None and falling(n) <= tolerance * (1 + 1e-9) and falling(n - 1) > tolerance
    assert told.fewest(1e-4) is None


def test_no_more_grids_are_made_than_a_tolerance_needs() -> None:
    made: list[int] = []

    def error_of(n: int) -> float:
        made.append(n)
        return falling(n)

    assert forecast(error_of, 0.1).fewest(0.1) == forecast(falling).fewest(0.1)
    assert max(made) < 10 and len(made) == len(set(made))


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (falling, "12 steps come within 5 %, 22 within 2 %, 35 within 1 % of what ever more steps draw. "),
        (lambda n: 0.8 - 0.01 * n, "Even 50 steps are about 30 % off. "),
        (lambda n: 0.008, "1 step comes within 1 % of what ever more steps draw. "),
        (lambda n: 0.0, "1 step comes within 1 % of what ever more steps draw. "),
    ],
)
def test_a_sentence_says_what_it_comes_to(errors, said: str) -> None:
    assert forecast(errors).sentence.startswith(said)
    assert "Foretold, not sampled: true to a factor of about 2." in forecast(errors).sentence


@pytest.mark.parametrize("errors", [falling, lambda n: 0.9, lambda n: 0.0, lambda n: 10.0 ** (-n)])
def test_any_forecast_is_drawn_with_its_tolerance(errors) -> None:
    told = Forecast({n: max(errors(n), 1e-9) for n in COUNTS})
    picture = np.asarray(draw_forecast(told, 0.05))
    assert picture.shape[1] == WIDTH and MOST_STEPS == 50
    for colour in COLOURS[:2]:
        assert (picture == np.array(colour)).all(-1).sum() > 300
