# SPDX-License-Identifier: GPL-3.0-or-later
"""NOISE for SamplerCustomAdvanced."""

import inspect
from typing import Any

from comfy_api.latest import io

from ..common.messages import both, inform
from ..noise.poisson import PoissonNoise as Stretched
from ..noise.poisson import PoissonSteps
from ..noise.spin import SpinNoise as Spun
from .notice import show_at_node

CATEGORY = "DizzyDiff/noise"


def draw(latent: dict[str, Any], seed: int) -> Any:
    """Core's own noise of a seed."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(seed).generate_noise(latent)


def seed_input(name: str, tooltip: str) -> io.Int.Input:
    """As core's samplers have it."""
    return io.Int.Input(
        name, default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip
    )


class SpinNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffSpinNoise",
            display_name="Spin Noise",
            category=CATEGORY,
            description="A seed's noise turned towards another's: from a picture to its variations. For "
            "SamplerCustomAdvanced.",
            search_aliases=["variation", "variation seed", "subseed", "slerp", "变体", "变化种子"],
            inputs=[
                seed_input("seed", "Of the picture to start from."),
                seed_input("variation_seed", "Of the picture to turn towards."),
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


class PoissonNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffPoissonNoise",
            display_name="Poisson Noise",
            category=CATEGORY,
            description="Noise of Poisson flow models (PFGM++): a seed's noise, of another length in every "
            "picture. For SamplerCustomAdvanced, and for models that were trained with it.",
            search_aliases=["pfgm", "pfgm++", "poisson flow", "student t", "heavy tail", "泊松流", "噪声"],
            inputs=[
                seed_input("seed", "As core's RandomNoise has it."),
                io.Int.Input(
                    "D",
                    default=2048,
                    min=1,
                    max=1 << 20,
                    tooltip="Dimensions that the model was trained to add: 64, 128, 2048. The larger, the "
                    "nearer to the common noise. 1 is the first Poisson flow model.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="A sampler that adds noise at its steps is given noise of this law for them.",
                ),
            ],
            outputs=[
                io.Noise.Output(tooltip="For SamplerCustomAdvanced."),
                io.Sampler.Output(
                    tooltip="The sampler, with noise of this law at its steps. Euler without one."
                ),
            ],
        )

    @classmethod
    def execute(cls, seed: int, D: int, sampler: Any = None) -> io.NodeOutput:
        return io.NodeOutput(Stretched(seed, D, draw), poisson_sampler(sampler, D))


def poisson_sampler(sampler: Any, D: int) -> Any:
    """The SAMPLER with noise of D's law at its steps; itself where it takes no noise sampler, as those that
    add no noise.
    """
    import comfy.samplers
    from comfy.k_diffusion.sampling import default_noise_sampler

    if sampler is None:
        return comfy.samplers.sampler_object("euler")
    function = getattr(sampler, "sampler_function", None)
    if function is None or "noise_sampler" not in inspect.signature(function).parameters:
        both(inform, show_at_node)("This sampler takes no noise for its steps: it comes out as it went in.")
        return sampler
    steps = PoissonSteps(function, D, default_noise_sampler)
    return comfy.samplers.KSAMPLER(steps, sampler.extra_options, sampler.inpaint_options)
