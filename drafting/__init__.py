# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft-refine: one picture from several model calls at the same time, with any sampler of ComfyUI.

``speculation`` is the method: a model that answers a sampler from drafts. ``window`` makes and reads a round,
from ``predictors``, ``policies``, ``statistics``, ``space`` and ``combination``, which know torch only.
``sampler`` puts it around a SAMPLER, ``backends`` evaluate. In may come what decides which states are
evaluated ahead and which predictions are used; where they are evaluated is a backend.
"""
