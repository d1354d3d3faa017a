# SPDX-License-Identifier: GPL-3.0-or-later
"""Small pieces that several features share. They know nothing of any feature and import no ComfyUI: what
they need of it is passed in. In may come what a second feature would otherwise write again.
"""
