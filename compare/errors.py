# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with two things that are to be compared."""

from ..common.errors import UserError


class NotComparable(UserError):
    """Pictures of different sizes, a picture and a latent, or latents without a VAE."""
