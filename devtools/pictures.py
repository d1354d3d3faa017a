# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws what the pack is shown by: icon, banner, and a thumbnail for every workflow. Runs in the environment
(Pillow, aiohttp).
"""

from __future__ import annotations

import argparse
import asyncio
import colorsys
import json
import math
import runpy
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

runpy.run_path(str(Path(__file__).with_name("package.py")))["load_package"]("devtools", Path(__file__).parent)
from devtools.client import PromptFailed, run_outputs  # noqa: E402

GROUND, INK, FAINT = "#17202b", "#f2f5f7", "#8fa3b5"
OVERSAMPLING = 4
SIDE = 512
"""Of a thumbnail, in pixels."""


def spiral(side: int, dots: int = 30, turns: float = 2.6) -> Image.Image:
    """A path out of the noise: dots on a spiral that grow and take on colour as they come to rest, [side,
    side] RGBA.
    """
    big = side * OVERSAMPLING
    image = Image.new("RGBA", (big, big))
    pen = ImageDraw.Draw(image)
    for i in range(dots):
        t = i / (dots - 1)
        angle = 2 * math.pi * turns * (1 - t) ** 0.8 - 0.6
        radius = big * 0.42 * (1 - t) ** 0.9
        x, y = big / 2 + radius * math.cos(angle), big / 2 + radius * math.sin(angle)
        r = big * (0.012 + 0.075 * t**2.2)
        red, green, blue = colorsys.hsv_to_rgb(0.58 - 0.5 * t, 0.25 + 0.6 * t, 0.65 + 0.3 * t)
        pen.ellipse((x - r, y - r, x + r, y + r), (int(255 * red), int(255 * green), int(255 * blue), 255))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def icon(side: int = 400) -> Image.Image:
    """The registry's icon: the spiral on a rounded square."""
    big = side * OVERSAMPLING
    ground = Image.new("RGBA", (big, big))
    ImageDraw.Draw(ground).rounded_rectangle((0, 0, big - 1, big - 1), big * 0.2, GROUND)
    ground = ground.resize((side, side), Image.Resampling.LANCZOS)
    ground.alpha_composite(spiral(side))
    return ground


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    """The registry's banner, 21:9."""
    image = Image.new("RGBA", (width, height), GROUND)
    image.alpha_composite(spiral(height - 60), (30, 30))
    pen, left = ImageDraw.Draw(image), height + 10
    pen.text((left, 150), "DizzyDiff", INK, ImageFont.load_default(120))
    for i, line in enumerate(
        ("guided students", "draft-refine on several devices", "sigmas measured on your model")
    ):
        pen.text((left + 6, 310 + 48 * i), line, FAINT, ImageFont.load_default(36))
    return image.convert("RGB")


def thumbnail(name: str, saved: list[Image.Image], shown: list[Image.Image]) -> Image.Image:
    """What a workflow makes: its pictures, and below them what it shows last; its name over the spiral where
    it made nothing here.
    """
    image = Image.new("RGB", (SIDE, SIDE), GROUND)
    if not saved:
        mark = spiral(300)
        image.paste(mark, (SIDE // 2 - 150, 30), mark)
        words = name.removeprefix("with_").split("_")
        for i, line in enumerate((" ".join(words[:2]), " ".join(words[2:]))):
            ImageDraw.Draw(image).text(
                (SIDE // 2, 380 + 60 * i), line, INK, ImageFont.load_default(54), anchor="mm"
            )
        return image
    below = min(SIDE // 2, SIDE * shown[-1].height // shown[-1].width) if shown else 0
    side = (SIDE - below) // 2
    for i, picture in enumerate(saved[:4]):
        place = (SIDE // 2 - side + i % 2 * side, i // 2 * side)
        image.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), place)
    if shown:
        picture = shown[-1].convert("RGB")
        fitted = ImageOps.fit(picture, (SIDE, below), Image.Resampling.LANCZOS, centering=(0.5, 0.0))
        image.paste(fitted, (0, SIDE - below))
    return image


async def outputs(
    address: str, workflow: Path, folders: dict[str, Path]
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The pictures that a workflow (saves, only shows) on a running ComfyUI; none where its models are not
    there.
    """
    try:
        made = await run_outputs(address, json.loads(workflow.read_text(encoding="utf-8")))
    except PromptFailed as failure:
        print(f"{workflow.stem}: drawn by its name, since ComfyUI refused it: {str(failure)[:200]}")
        return [], []
    pictures: dict[str, list[Image.Image]] = {kind: [] for kind in folders}
    for each in made:
        pictures[each["type"]].append(
            Image.open(folders[each["type"]] / each["subfolder"] / each["filename"])
        )
    return pictures["output"], pictures["temp"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("root", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="ComfyUI's output folder")
    parser.add_argument("--temp", type=Path, required=True, help="ComfyUI's folder for previews")
    options = parser.parse_args()
    icon().save(options.root / "assets" / "icon.png")
    banner().save(options.root / "assets" / "banner.png")
    for workflow in sorted((options.root / "workflows" / "api").glob("*.json")):
        made = asyncio.run(
            outputs(options.address, workflow, {"output": options.output, "temp": options.temp})
        )
        thumbnail(workflow.stem, *made).save(options.root / "workflows" / f"{workflow.stem}.jpg", quality=90)


if __name__ == "__main__":
    main()
