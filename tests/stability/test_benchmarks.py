# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks compare with: GITS' grid, and the paper's teacher."""

from __future__ import annotations

import torch

from dizzydiff.benchmarks import stability_paper
from dizzydiff.benchmarks._stability_table import table
from dizzydiff.benchmarks.stability import gits
from dizzydiff.stability.profile import Effort

from .test_grids import mixture, profile_of


def test_gits_grid_falls_from_the_first_level_to_zero_for_any_number_of_steps() -> None:
    dense = profile_of(mixture(), Effort(levels=30, probes=3, directions=0))
    for steps in (1, 2, 7, 29):
        grid = gits(dense, steps)
        assert len(grid) == steps + 1
        assert grid[0] == dense.sigmas[0]
        assert grid[-1] == 0
        assert (grid.diff() < 0).all()


def test_paper_teacher_makes_mixture_samples_of_noise() -> None:
    """From the exact marginal at the horizon to that at 0, where every sample lies 8 +- 1 from its mode:
    sqrt(64) sigma0.
    """
    m = stability_paper.paper_mixture(0, "cpu")
    torch.manual_seed(0)
    x = stability_paper.teacher(m, stability_paper.noised(m, 64, 1.0), 1.0, 0.0)
    nearest = torch.cdist(x, m.means).amin(1)
    assert abs(float(nearest.mean()) - 8) < 0.5
    assert nearest.max() < 12


def test_paper_teacher_composes_over_segments() -> None:
    m = stability_paper.paper_mixture(1, "cpu")
    x = stability_paper.noised(m, 8, 0.6)
    whole = stability_paper.teacher(m, x, 0.6, 0.1)
    torch.testing.assert_close(
        stability_paper.teacher(m, stability_paper.teacher(m, x, 0.6, 0.3), 0.3, 0.1),
        whole,
        rtol=1e-3,
        atol=1e-3,
    )


def test_table_shows_each_setting_beside_the_best_of_core() -> None:
    """Errors of 0.02 and 0.01 of core's, ours at 0.004."""
    setting = {
        "model": "modes",
        "solver": "euler",
        "steps": 8,
        "wrong_mode_share": 0.03,
        "calibration_calls": 0,
    }
    rows = [
        {**setting, "grid": name, "rel_mse": error}
        for name, error in (("simple", 0.02), ("karras", 0.01), ("dizzydiff", 0.004))
    ]
    total = {
        "model": "all",
        "grid": "dizzydiff",
        "rel_mse": 0.004,
        "rel_mse_held_out": 0.005,
        "worst_to_best_of_core": 0.4,
        "rows_above_best_of_core": 0,
        "rows": 1,
        "calibration_calls": 444,
        "core": ["simple", "karras"],
    }
    lines = table([*rows, total]).splitlines()
    assert "| dizzydiff | 0.0040 | 0.0050 | 0.40 | 0 of 1 | 444 |" in lines
    (line,) = [line for line in lines if line.startswith("| modes | euler | 8 | 0.0040 (3.0)")]
    assert line.endswith("| 0.0100 (3.0) karras |")
