# SPDX-License-Identifier: GPL-3.0-or-later
"""What other packs put into a graph, in a few lines each. Loaded as a package of its own, as ComfyUI loads a
pack, so that nothing here passes for a part of this one.
"""
