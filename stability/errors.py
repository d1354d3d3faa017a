# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with what the user gave: one type a mistake.

Every message names what was given, what was expected, and what to do.
"""

from ..common.errors import UserError


class StabilityError(UserError):
    """Base of all errors a user of the stability grid can cause."""


class CannotMeasure(StabilityError):
    """The model gives no profile: it answers with NaN, has no noise levels to measure between, or predicts
    from more than a state and its noise level.
    """


class BadEffort(StabilityError):
    """A number of levels, probes or directions that cannot be measured."""


class BadSteps(StabilityError):
    """A grid of no steps was asked for."""


class BadBlend(StabilityError):
    """A share of another grid that is not from 0 to 1."""


class BadSigmas(StabilityError):
    """SIGMAS that are no row of numbers from 0 up."""


class BadTolerance(StabilityError):
    """An error to stay within that is not between 0 and 1."""


class NothingToMeasure(StabilityError):
    """Neither a guider nor a whole of model and conditionings is connected."""
