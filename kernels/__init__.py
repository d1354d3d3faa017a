# SPDX-License-Identifier: GPL-3.0-or-later
"""Numerical kernels: one operation a file, in PyTorch, and beside it a Triton version, used where it has
proved itself. In may come what is bound by memory or launches; nothing here knows of diffusion or ComfyUI.
README.md says how to add one.
"""
