# SPDX-License-Identifier: GPL-3.0-or-later
"""Distillation of the user's own model (Meng et al. 2023): a student that takes the guidance scale as an
input, then in few steps.

``objective`` and ``states`` say what is learned and where, ``training`` how; ``adapter`` is the file. All of
them know torch only; ``native`` trains and runs adapters on ComfyUI's models.
"""
