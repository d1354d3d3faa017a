# SPDX-License-Identifier: GPL-3.0-or-later
"""The guidance scale g, the weight w of each family, and the embedding of w.

Users always give g on the scale of classifier-free guidance (1 = no guidance).
"""

from __future__ import annotations

import enum
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import BadScales, ConfigMismatch, WrongGuidanceShape

DEFAULT_SCALE = 4.0
HIGHEST_SCALE = 100.0
"""Of the nodes' inputs."""
WEIGHT_CONVENTIONS = {"g - 1": 1.0, "g": 0.0}
"""What ``guidance_weight`` may say in a config or in metadata -> offset, w = g - offset."""


class Applied(enum.Enum):
    """Where the guidance of a family reaches its network."""

    TIME_EMBEDDING = "C e(w) is added to the embedding of time, by this pack"
    COMFYUI = "ComfyUI's own class of the network embeds g"
    NOWHERE = "ComfyUI has no such network"


@dataclass(frozen=True)
class GuidanceFamily:
    """A kind of guidance-conditioned network and its conventions, where the file does not say otherwise.

    keys: a pattern that some of its tensors' names match. width: columns of C, None where this pack adds no
    C. signals: weights embedded side by side. offset: w = g - offset, 1 as in Meng et al., 0 for students
    trained on g itself. scale_range: the g it was trained for. lcm_steps: the number of timesteps it was
    distilled on, None for all of them.
    """

    name: str
    keys: str
    applied: Applied
    width: int | None = None
    signals: int = 1
    offset: float = 0.0
    default_scale: float = DEFAULT_SCALE
    scale_range: tuple[float, float] | None = None
    lcm_steps: int | None = None


LCM = GuidanceFamily(
    "LCM",
    r"(^|\.)time_embedding\.cond_proj\.",
    Applied.TIME_EMBEDDING,
    width=256,
    offset=1.0,
    scale_range=(3.0, 13.0),
    lcm_steps=50,
)
TWO_SIGNALS = GuidanceFamily("two signals", LCM.keys, Applied.TIME_EMBEDDING, width=1024, signals=2)
FAMILIES = (
    LCM,
    GuidanceFamily("cfg-distill", LCM.keys, Applied.TIME_EMBEDDING, width=512),
    TWO_SIGNALS,
    GuidanceFamily(
        "Flux, HunyuanVideo, HunyuanImage",
        r"(^|\.)(guidance_in|time_text_embed\.guidance_embedder|time_guidance_embed)\.",
        Applied.COMFYUI,
    ),
    GuidanceFamily("SANA-Sprint", r"(^|\.)(cfg_embedder|time_embed\.guidance_embedder)\.", Applied.NOWHERE),
)
OF_WIDTH = {family.width: family for family in FAMILIES if family.width is not None}


def family_elsewhere(keys: Iterable[str]) -> GuidanceFamily | None:
    """The family of a network with these tensors whose guidance this pack does not apply itself."""
    names = list(keys)
    others = [family for family in FAMILIES if family.applied is not Applied.TIME_EMBEDDING]
    # What ComfyUI cannot run comes last in the table and first here: its message is the more useful one.
    return next((each for each in reversed(others) if any(re.search(each.keys, key) for key in names)), None)


@dataclass(frozen=True)
class GuidanceInput:
    """How a student takes its guidance.

    width: columns of the projection C (``time_embedding.cond_proj``), one of the table's.
    offset: w = g - offset.
    scale_range: the g the student was trained for, or None where the file does not say.
    """

    width: int
    offset: float
    scale_range: tuple[float, float] | None

    @property
    def signals(self) -> int:
        """Weights embedded side by side."""
        return OF_WIDTH[self.width].signals

    @property
    def default_scale(self) -> float:
        """The g used where the conditioning carries none: the family's, clipped to the trained range."""
        default = OF_WIDTH[self.width].default_scale
        low, high = self.scale_range or (default, default)
        return min(max(default, low), high)

    def milliweights(self, scales: torch.Tensor) -> torch.Tensor:
        """round(1000 w) for scales g, as int64 of the same shape, on the CPU.

        Integers, because ComfyUI casts float conditions to the model's dtype, and 1000 w does not survive
        fp16 or bf16.
        """
        return torch.round(1000.0 * (scales.cpu().double() - self.offset)).long()

    def warn_outside(self, scales: torch.Tensor, name: str) -> None:
        """Log a warning if any g lies outside the trained range."""
        if self.scale_range is None:
            return
        low, high = self.scale_range
        outside = scales[(scales < low) | (scales > high)]
        if outside.numel():
            given = ", ".join(f"{g:g}" for g in outside.flatten().tolist())
            logging.warning(
                "%s: guidance %s is outside the range %g to %g this student was trained for; expect "
                "artefacts.",
                name,
                given,
                low,
                high,
            )


def guidance_input(width: int, settings: Mapping[str, Any], name: str) -> GuidanceInput:
    """The guidance input of a projection ``width`` columns wide.

    settings: the UNet's config or the file's metadata; ``guidance_weight`` ("g - 1" or "g") and
    ``guidance_scale_range`` ([low, high] in g) win over the conventions of the family of that width. Raises
    WrongGuidanceShape or ConfigMismatch.
    """
    family = OF_WIDTH.get(width)
    if family is None:
        raise WrongGuidanceShape(
            f"{name}: time_embedding.cond_proj takes {width} values; expected 256, 512 or 1024 (two "
            "signals). This is not a guidance-conditioned student of a known kind."
        )
    declared = settings.get("guidance_weight")
    if declared is None:
        offset, scale_range = family.offset, family.scale_range
    elif declared in list(WEIGHT_CONVENTIONS):
        offset, scale_range = WEIGHT_CONVENTIONS[declared], None
    else:
        raise ConfigMismatch(
            f'{name}: guidance_weight is {declared!r}; expected "g - 1" or "g". Correct it in the config.'
        )
    stated = settings.get("guidance_scale_range")
    return GuidanceInput(width, offset, scale_range if stated is None else _range_of(stated, name))


def distilled_guidance(scales: tuple[float, float], signals: int = 1) -> GuidanceInput:
    """What Distill Guidance trains: w = g - 1, at LCM's width, which diffusers' pipelines embed too; or two
    of them side by side.
    """
    width = (LCM if signals == 1 else TWO_SIGNALS).width
    assert width is not None
    return GuidanceInput(width, LCM.offset, scales)


def _range_of(stated: Any, name: str) -> tuple[float, float]:
    try:
        low, high = (float(g) for g in stated)
    except (TypeError, ValueError, OverflowError):
        low, high = math.nan, math.nan
    if not 0 <= low <= high <= HIGHEST_SCALE:
        raise ConfigMismatch(
            f"{name}: guidance_scale_range is {stated!r}; expected [low, high]. Correct it in the config."
        )
    return low, high


def slow_entries(guidance: GuidanceInput) -> torch.Tensor:
    """[width]: 1 for the entries of e(w) whose period is at least the trained range of w, 0 for faster ones.

    What a student learns of w is smooth. The faster entries are noise to it, of which an optimiser with
    Adam's normalised steps would learn as much in each update.
    """
    low, high = guidance.scale_range or (0.0, 0.0)
    half = guidance.width // guidance.signals // 2
    f = torch.exp(-torch.arange(half) * (math.log(10000.0) / (half - 1)))
    return (1000 * f * (high - low) <= 2 * math.pi).float().repeat(2 * guidance.signals)


def fourier_embedding(milliweights: torch.Tensor, width: int) -> torch.Tensor:
    """e(w) = [sin(a f), cos(a f)], a = 1000 w, f_j = exp(-j ln 10000 / (width/2 - 1)); Luo et al. 2023 (LCM),
    as in diffusers.

    milliweights: [B], 1000 w. Returns [B, width] in fp32 (float64 for float64 input), whatever dtype the
    network has: in bf16 the angles are noise.
    """
    half = width // 2
    a = milliweights if milliweights.dtype == torch.float64 else milliweights.float()
    j = torch.arange(half, dtype=a.dtype, device=a.device)
    f = torch.exp(-j * (math.log(10000.0) / (half - 1)))
    angles = a[:, None] * f
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def guidance_embedding(milliweights: torch.Tensor, guidance: GuidanceInput) -> torch.Tensor:
    """[B] or [B, signals] of 1000 w -> [B, width]: e(w), or [e(w1), e(w2)] for two-signal students."""
    rows = milliweights.reshape(milliweights.shape[0], -1).expand(-1, guidance.signals)
    return torch.cat(
        [fourier_embedding(w, guidance.width // guidance.signals) for w in rows.unbind(1)], dim=1
    )


def scales_tensor(guidance: float | Sequence[float] | torch.Tensor | None, default: float) -> torch.Tensor:
    """The conditioning's guidance as a float64 vector [N] on the CPU: one g, or one a row of the batch.

    Raises BadScales for NaN and infinity.
    """
    if guidance is None:
        guidance = default
    given = guidance.detach().cpu() if isinstance(guidance, torch.Tensor) else guidance
    scales = torch.as_tensor(given, dtype=torch.float64).reshape(-1)
    if not bool(scales.isfinite().all()):
        raise BadScales(f"guidance: got {scales.tolist()}; expected finite numbers, such as 4.")
    return scales


def signals_tensor(first: Any, second: Any, guidance: GuidanceInput) -> torch.Tensor:
    """The scales of a conditioning's ``guidance`` and ``guidance_2``: [N], or [N, 2] for a student of two
    signals, whose second is as the first where it has none of its own. Raises BadScales.
    """
    g = scales_tensor(first, guidance.default_scale)
    if guidance.signals == 1:
        return g
    return torch.stack(torch.broadcast_tensors(g, g if second is None else scales_tensor(second, 0.0)), 1)


def parse_scales(text: str) -> list[float]:
    """Read "1, 2, 4, 8" (commas, semicolons or spaces).

    Raises BadScales unless it is one or more finite numbers from 0 to 100.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    try:
        scales = [float(word) for word in words]
    except ValueError:
        scales = []
    if not scales or not all(0.0 <= g <= HIGHEST_SCALE for g in scales):
        raise BadScales(
            f'scales: got "{text}"; expected numbers from 0 to 100 separated by commas, such as "1, 2, 4, 8".'
        )
    return scales
