# SPDX-License-Identifier: GPL-3.0-or-later
"""Sigmas looked at: beside one another, and how many of them are enough."""

from typing import Any

from comfy_api.latest import io, ui

from ..common.messages import both, warn
from ..common.pictures import image_of, picture_of_text
from ..stability.comparison import compared
from ..stability.enough import forecast_of
from ..stability.measured import Measured
from ..stability.sigmas_plot import draw_sigmas
from ..stability.solvers import SOLVERS
from ..stability.steps import MOST_STEPS, UNTOLD_STEPS, draw_forecast
from .measuring import with_progress
from .notice import show_at_node
from .stability import CATEGORY
from .stability_inputs import (
    DEFAULT_SOLVER,
    SIGMAS,
    STABILITY_PROFILE,
    TOLERANCE,
    sampler_input,
    solver_input,
    tolerance_input,
)

MOST_GRIDS = 8
"""More curves are not told apart in a node."""


class CompareSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        grids = io.Autogrow.TemplatePrefix(
            io.Sigmas.Input("sigmas", tooltip="Sigmas of any node."), prefix="sigmas", min=1, max=MOST_GRIDS
        )
        return io.Schema(
            node_id="DizzyDiffCompareSigmas",
            display_name="Compare Sigmas",
            category=CATEGORY,
            description="Draws sigmas of any nodes beside one another. With a profile it says how far off "
            "the pictures will be with each, without sampling any.",
            is_output_node=True,
            search_aliases=["plot", "graph", "visualize", *SIGMAS],
            inputs=[
                io.Autogrow.Input("grids", template=grids, tooltip="One input more with each connection."),
                io.String.Input(
                    "names",
                    default="",
                    tooltip="What the curves are called, in order, separated by commas. Numbers where "
                    "there are none.",
                ),
                STABILITY_PROFILE.Input(
                    "profile",
                    optional=True,
                    tooltip="From Measure Stability: the error of each grid is foretold.",
                ),
                solver_input(optional=True),
                sampler_input(),
            ],
            outputs=[io.Image.Output(display_name="plot", tooltip="Sigma over the step.")],
        )

    @classmethod
    def execute(
        cls,
        grids: dict[str, Any],
        names: str = "",
        profile: Measured | None = None,
        solver: str = DEFAULT_SOLVER.name,
        sampler: Any = None,
    ) -> io.NodeOutput:
        say = both(warn, show_at_node)
        drawn = compared(
            [grids[name] for name in sorted(grids)], names, profile, SOLVERS[solver], sampler, say
        )
        picture = image_of(draw_sigmas(drawn))
        said = [grid.line for grid in drawn]
        return io.NodeOutput(picture, ui={**ui.PreviewImage(picture, cls=cls).as_dict(), "text": said})


class StepsNeeded(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffStepsNeeded",
            display_name="How Many Steps",
            category=CATEGORY,
            description="How far off the pictures of 1 to 50 steps will be, foretold from the profile "
            "without sampling, and the fewest steps within a tolerance.",
            is_output_node=True,
            search_aliases=["step count", "enough steps", "fewest steps", *SIGMAS],
            inputs=[
                STABILITY_PROFILE.Input("profile", tooltip="From Measure Stability."),
                tolerance_input(advanced=False),
                solver_input(optional=True),
                sampler_input(),
            ],
            outputs=[
                io.Int.Output(
                    display_name="steps", tooltip="The fewest within the tolerance; 50 where none is."
                ),
                io.String.Output(display_name="text", tooltip="What the plot comes to, in a sentence."),
                io.Image.Output(display_name="plot", tooltip="The error foretold, over the number of steps."),
            ],
        )

    @classmethod
    def execute(
        cls,
        profile: Measured,
        tolerance: float = TOLERANCE,
        solver: str = DEFAULT_SOLVER.name,
        sampler: Any = None,
    ) -> io.NodeOutput:
        said: list[str] = []
        say = both(said.append, both(warn, show_at_node))
        told = forecast_of(profile, SOLVERS[solver], sampler, say=say, progress=with_progress())
        steps = UNTOLD_STEPS if told is None else told.fewest(tolerance) or MOST_STEPS
        text = " ".join(said) if told is None else told.sentence
        drawn = picture_of_text(text) if told is None else draw_forecast(told, tolerance)
        picture = image_of(drawn)
        shown = ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(steps, text, picture, ui={**shown, "text": [text]})
