# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with what the user gave: one type a mistake.

Every message names what was given, what was expected, and what to do.
"""

from ..common.errors import UserError


class StudentError(UserError):
    """Base of all errors a user of the loader can cause."""


class MissingFile(StudentError):
    """The chosen file or folder is not there (any more)."""


class OutsideModelsFolder(StudentError):
    """A name tries to leave ComfyUI's models folders."""


class NotSafetensors(StudentError):
    """The file is a pickle, or no weights file at all."""


class DamagedFile(StudentError):
    """The file ends early, or its header or JSON cannot be read."""


class NotFinite(StudentError):
    """The weights contain NaN or infinity."""


class NoGuidanceInput(StudentError):
    """The network has no input for the guidance scale."""


class WrongGuidanceShape(StudentError):
    """The guidance projection does not fit the network or any known embedding."""


class ConfigMismatch(StudentError):
    """The weights are not those of the network that the config describes."""


class UnsupportedModel(StudentError):
    """A known kind of network or setting that ComfyUI's own classes cannot run."""


class NeedsTeacher(StudentError):
    """The file is an adapter, which is a student only together with its teacher."""


class NotAnAdapter(StudentError):
    """The file is a student of its own: there is nothing for a teacher to do."""


class WrongTeacher(StudentError):
    """An adapter meets a model that it was not made from."""


class NoUnconditional(StudentError):
    """The teacher cannot be guided: it answers the same with and without the prompt, or takes guidance as an
    input.
    """


class BadSigmas(StudentError):
    """Noise levels that the sampler cannot follow."""


class BadScales(StudentError):
    """A list of guidance scales cannot be read."""


class BadSchedule(StudentError):
    """A list of guidance scales along the way cannot be read."""
