# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with what the user gave: one type a mistake.

Every message names what was given, what was expected, and what to do.
"""

from ..common.errors import UserError


class DraftingError(UserError):
    """Base of all errors a user of draft-refine can cause."""


class BadDevices(DraftingError):
    """The list of devices cannot be read, or names a device that this machine has not."""


class CannotClone(DraftingError):
    """The model cannot be loaded a second time for another device."""


class NoRay(DraftingError):
    """Ray is not installed where ComfyUI runs."""


class NoCluster(DraftingError):
    """No cluster answers at the address, or it has no place for a worker."""


class Undraftable(Exception):
    """Why a sampler cannot be drafted; it runs as it is, and the user is told."""


class MainDeviceOnly(Undraftable):
    """Why model calls must be made on the main device, one by one and in the sampler's order."""
