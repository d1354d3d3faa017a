# SPDX-License-Identifier: GPL-3.0-or-later
"""Distillation of the user's own model (Meng et al. 2023): a student that takes the guidance scale as an
input, then in few steps. Training only: nothing that loads or samples a student imports this package.

``objective``, ``distribution`` and ``stages`` say what is learned and where, ``plan`` and ``training`` in
which order and how: they know torch only. ``teacher``, ``trainable`` and ``memory`` do it on ComfyUI's
models; ``run`` and ``several`` make a file of it.
"""
