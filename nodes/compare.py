# SPDX-License-Identifier: GPL-3.0-or-later
"""Two pictures beside one another."""

from typing import Any

from comfy_api.latest import io, ui

from ..common.pictures import image_of
from ..compare.comparison import compared
from ..compare.picture import draw
from .notice import show_at_node

CATEGORY = "DizzyDiff/compare"


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def report(name: str) -> io.String.Input:
            return io.String.Input(
                f"report_{name}",
                optional=True,
                force_input=True,
                tooltip=f"What is to be said of {name}, such as the report of Draft-Refine KSampler.",
            )

        return io.Schema(
            node_id="DizzyDiffCompare",
            display_name="Compare Pictures",
            category=CATEGORY,
            description="Two pictures or two latents side by side, their difference, and how far they are "
            "apart: PSNR, SSIM, and the deviation that tolerances are given in.",
            is_output_node=True,
            search_aliases=["difference", "psnr", "ssim", "side by side", "a/b", "diff", "对比", "比较"],
            inputs=[
                io.MultiType.Input("a", [io.Image, io.Latent], tooltip="A picture, or a latent."),
                io.MultiType.Input(
                    "b", [io.Image, io.Latent], tooltip="What a is compared with: of its size."
                ),
                io.Vae.Input("vae", optional=True, tooltip="Only for latents: what makes pictures of them."),
                report("a"),
                report("b"),
            ],
            outputs=[
                io.Image.Output(
                    display_name="comparison", tooltip="a, b and their difference, side by side."
                ),
                io.Float.Output(
                    display_name="PSNR",
                    tooltip="In dB, over the whole batch. Above 40 nobody sees a difference.",
                ),
                io.Float.Output(
                    display_name="SSIM", tooltip="1 for equal pictures, the mean over the batch."
                ),
                io.Float.Output(
                    display_name="deviation",
                    tooltip="RMS of the difference over RMS of b, of the latents where those are compared.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, a: Any, b: Any, vae: Any = None, report_a: str = "", report_b: str = ""
    ) -> io.NodeOutput:
        comparison = compared(a, b, vae, report_a, report_b)
        picture = image_of(draw(comparison))
        show_at_node(comparison.sentence)
        return io.NodeOutput(
            picture,
            comparison.psnr,
            comparison.ssim,
            comparison.deviation,
            ui={**ui.PreviewImage(picture, cls=cls).as_dict(), "text": [comparison.sentence]},
        )
