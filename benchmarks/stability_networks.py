# SPDX-License-Identifier: GPL-3.0-or-later
"""Grids of few steps compared on the embedded teacher at CFG 1, 4 and 8 and on the embedded student, as
``stability`` does on mixtures.

Measured with one prompt, compared on as many others as there are images. Bar: at 8 steps the share of
captions that the pictures show, judged by the reader, is at least that of the best competitor.
"""

from __future__ import annotations

from typing import Any

import torch

from ._stability_pictures import picture_cases
from ._stability_table import table
from .stability import ROOT, compare, summary

__all__ = ["run", "table"]

SETTINGS = (("dpmpp_2m", 6), ("dpmpp_2m", 8), ("dpmpp_2m", 12), ("euler", 8), ("heun", 8))
"""(solver, steps): a mixture draws a hundred images in the time that a network takes for one."""


def run(quick: bool) -> list[dict[str, Any]]:
    """One row a model, solver, number of steps and grid, and at the end one a grid over all of them."""
    from ..devtools.inprocess import enter_comfyui

    enter_comfyui(ROOT, cpu=not torch.cuda.is_available())
    rows = []
    with torch.inference_mode():
        for case in picture_cases(quick):
            rows += compare(case, SETTINGS[1:2] if quick else SETTINGS, 60 if quick else 200)
    return rows + summary(rows)
