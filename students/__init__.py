# SPDX-License-Identifier: GPL-3.0-or-later
"""Guidance-conditioned students: the guidance scale and its embedding, file formats, loading, sampling."""
