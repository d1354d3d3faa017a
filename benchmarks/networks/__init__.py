# SPDX-License-Identifier: GPL-3.0-or-later
"""Small random networks of every model family that ComfyUI samples, each in core's own class and with what it
is conditioned on.

``description`` says what such a network is, ``families`` joins the table of them, which the other modules
hold by kind, and ``subject`` makes a MODEL of one. A further family is one more ``Network`` in the table.
"""
