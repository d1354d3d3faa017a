# SPDX-License-Identifier: GPL-3.0-or-later
"""Sigmas learned from the pictures that are made anyway."""

from typing import Any

from comfy_api.latest import io

from ..common.messages import both, inform
from ..stability.watched import ENOUGH, FEW, MIN_STEPS
from ..stability.watching import Watcher, watched
from . import inputs
from .measuring import store
from .notice import show_at_node
from .stability_inputs import SIGMAS


class WatchStability(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffWatchStability",
            display_name="Watch Stability",
            category="DizzyDiff/stability",
            description="Learns sigmas from the pictures that you make anyway, at no model call: put it "
            f"between the model and any sampler node. After {FEW} pictures, and again after {ENOUGH}, "
            f"samplers of {MIN_STEPS} steps or more get what was learned in place of their scheduler's "
            "sigmas.",
            search_aliases=["learn", *SIGMAS],
            inputs=[
                inputs.model(),
                io.Boolean.Input(
                    "replace_sigmas",
                    default=True,
                    tooltip="Runs from pure noise get the learned sigmas in place of the scheduler's. A "
                    f"seed's picture then changes after {FEW} and after {ENOUGH} pictures, and no more. "
                    "Off: only watched.",
                ),
                io.Boolean.Input(
                    "start_anew",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Forget what was watched of this model before.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler node, with any scheduler.")],
        )

    @classmethod
    def execute(cls, model: Any, replace_sigmas: bool, start_anew: bool = False) -> io.NodeOutput:
        watcher = Watcher(store(), replace_sigmas, start_anew, both(inform, show_at_node))
        return io.NodeOutput(watched(model, watcher))
