# SPDX-License-Identifier: GPL-3.0-or-later
"""Sampling grids made for the very model that is sampled.

``profile`` measures a model along its own trajectories, ``linearized`` makes a model of what was measured,
``solvers`` run in it, ``curves`` are what is read off it, ``grids`` and ``refine`` choose noise levels by it,
``store`` keeps profiles and ``plot`` draws them. ``subject``, ``measured`` and ``samplers`` alone import
ComfyUI; all else is torch. In may come what chooses sigmas by what a model does; sampling with them is
core's.
"""
