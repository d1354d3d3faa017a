# SPDX-License-Identifier: GPL-3.0-or-later
"""Initial noises of other laws and other paths than a seed's own."""
