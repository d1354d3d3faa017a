# SPDX-License-Identifier: GPL-3.0-or-later
"""Stability grids: noise levels chosen by what was measured of the very model that is sampled."""
