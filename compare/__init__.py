# SPDX-License-Identifier: GPL-3.0-or-later
"""How far two pictures are apart: in the numbers that pictures are judged by, and to look at."""
