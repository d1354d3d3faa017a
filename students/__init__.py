# SPDX-License-Identifier: GPL-3.0-or-later
"""Guidance-conditioned students: their files, their networks as native MODELs, their guidance and sampler.

Read in this order: ``guidance`` (g, w and the families), ``files``, ``layout`` and ``schedule`` (what is read
and checked), ``networks`` and ``loader`` (a whole network), ``adapter`` and ``student_model`` (an adapter on
its teacher). ``distill`` trains, and nothing here imports it.
"""
