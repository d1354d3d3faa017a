# SPDX-License-Identifier: GPL-3.0-or-later
"""NOISE for SamplerCustomAdvanced."""

from typing import Any

from comfy_api.latest import io

from ..noise.spin import SpinNoise as Spun

CATEGORY = "DizzyDiff/noise"


def draw(latent: dict[str, Any], seed: int) -> Any:
    """Core's own noise of a seed."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(seed).generate_noise(latent)


class SpinNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def seed(name: str, tooltip: str) -> io.Int.Input:
            return io.Int.Input(
                name,
                default=0,
                min=0,
                max=0xFFFFFFFFFFFFFFFF,
                control_after_generate=True,
                tooltip=tooltip,
            )

        return io.Schema(
            node_id="DizzyDiffSpinNoise",
            display_name="Spin Noise",
            category=CATEGORY,
            description="A seed's noise turned towards another's: from a picture to its variations. For "
            "SamplerCustomAdvanced.",
            search_aliases=["variation", "variation seed", "subseed", "slerp", "变体", "变化种子"],
            inputs=[
                seed("seed", "Of the picture to start from."),
                seed("variation_seed", "Of the picture to turn towards."),
                io.Float.Input(
                    "angle",
                    default=30.0,
                    min=0.0,
                    max=180.0,
                    step=1.0,
                    round=0.01,
                    tooltip="In degrees. 0: the seed's picture; 90: the variation seed's; 20 to 40: "
                    "variations. The pictures of a batch turn evenly from 0 to the angle.",
                ),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed: int, variation_seed: int, angle: float) -> io.NodeOutput:
        return io.NodeOutput(Spun(seed, variation_seed, angle, draw))
