# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements behind the numbers in the documentation: NAME is module ``benchmarks/NAME.py`` with
``run(quick: bool) -> list[dict]`` and, where rows want a table to read, ``table(rows) -> str`` in Markdown.

Modules that begin with ``_`` are parts of others. ``results/`` holds what was measured, with the machine. In
may come what a number in the docs, or a decision in the code, rests on.
"""
