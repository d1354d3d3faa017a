# SPDX-License-Identifier: GPL-3.0-or-later
"""What guides the teacher of Distill Guidance."""

from typing import Any

from ..common.messages import both, warn
from ..students.distill.guider import TeacherGuider, dials_in
from ..students.student_model import guidance_patches
from .notice import show_at_node


def teacher_guider(model: Any, negative: str, guider: Any, dials: str) -> TeacherGuider | None:
    """What guides the teacher, if it is not CFG; what is not learned of the inputs is said."""
    for sentence in remarks(model, negative, guider, dials):
        both(warn, show_at_node)(sentence)
    return None if guider is None else TeacherGuider(guider, dials_in(dials))


def remarks(model: Any, negative: str, guider: Any, dials: str) -> list[str]:
    """What the user gave and the student does not learn, or learns and keeps, a sentence each."""
    said, patches = [], ", ".join(guidance_patches(model))
    if guider is None and dials.strip() not in ("", "cfg"):
        said.append("The dials are not used: they name numbers of a guider, and none is connected.")
    if guider is None and patches:
        said.append(
            f"The model has guidance patches ({patches}), and CFG alone is learned. To learn them as well, "
            "connect the model from before them to model, and a guider with the patched one to guider."
        )
    if guider is not None and negative.strip():
        said.append("The negative prompt is not used: a guider is connected, which has its own.")
    if guider is not None and patches:
        said.append(
            f"The model has guidance patches ({patches}), which the student keeps beside what its guider "
            "teaches it. Connect the model from before them, or they count once more."
        )
    return said
