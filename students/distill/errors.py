# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with a distillation: one type a mistake."""

from ..errors import StudentError


class BadPlan(StudentError):
    """The settings contradict each other: a reversed guidance range, steps that cannot be halved, no
    updates.
    """


class NoPrompts(StudentError):
    """There is no prompt to learn from."""


class UnreadablePrompts(StudentError):
    """A file of prompts cannot be read, or is of another kind."""


class UnsupportedTeacher(StudentError):
    """A network without a time embedding that guidance could join."""


class UnknownDial(StudentError):
    """A guider has no number of this name, or more were named than a student has inputs."""


class OtherGuiderModel(StudentError):
    """A guider guides another network, or other weights, than the one that is distilled."""


class UnsupportedGuider(StudentError):
    """A guider that does not answer as a teacher has to."""


class NotEnoughMemory(StudentError):
    """Training needs more memory than there is."""


class Diverged(StudentError):
    """The loss or its gradient is NaN or infinite."""


class CannotSave(StudentError):
    """The file cannot be written; what stood there before is untouched."""


class OtherTraining(StudentError):
    """A file of this name comes from other settings or another teacher."""


class NotExportable(StudentError):
    """A MODEL that cannot become a plain LoRA: no student of Distill Guidance, several, or one whose network
    has no place for the guidance.
    """
