# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of presets, as a page of the docs shows it."""

from __future__ import annotations

from collections.abc import Iterable

from .presets import PRESETS, Preset

HEAD = (
    "| model | template | steps | cfg | sampler, scheduler | tolerance | predictions per round |",
    "|---|---|---|---|---|---|---|",
)


def table(presets: Iterable[Preset] = PRESETS) -> str:
    """A row a preset, in Markdown."""
    return "\n".join([*HEAD, *map(_row, presets)])


def _row(preset: Preset) -> str:
    guidance = f", guidance {preset.guidance:g}" if preset.guidance is not None else ""
    predictions = preset.predictions or "one a device"
    return (
        f"| {preset.title} | `{preset.name}` | {preset.steps} | {preset.cfg:g}{guidance} "
        f"| {preset.sampler}, {preset.scheduler} | {preset.tolerance:g} | {predictions} |"
    )


def with_table(page: str) -> str:
    """A page whose table of presets is replaced by today's."""
    before, _, rest = page.partition(HEAD[0])
    after = rest.partition("\n\n")[2]
    return f"{before}{table()}\n\n{after}"
