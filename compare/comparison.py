# SPDX-License-Identifier: GPL-3.0-or-later
"""Two things that are compared, whatever they are: pictures, or latents that a VAE makes pictures of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from . import metrics
from .errors import NotComparable


@dataclass(frozen=True)
class Comparison:
    """Two IMAGEs [B, H, W, C] of one shape, what is said of each, and of their latents, where those were
    given, the deviation [B].
    """

    a: Tensor
    b: Tensor
    report_a: str = ""
    report_b: str = ""
    latent_deviation: Tensor | None = None

    @cached_property
    def psnr(self) -> float:
        """Of all pictures as one, so that equal ones among them do not make it infinite."""
        return float(metrics.psnr(self.a[None], self.b[None]))

    @cached_property
    def ssim(self) -> float:
        """The mean over the batch."""
        return float(metrics.ssim(self.a, self.b).mean())

    @cached_property
    def deviation(self) -> float:
        """The mean over the batch, of the latents where there are any."""
        rows = metrics.deviation(self.a, self.b) if self.latent_deviation is None else self.latent_deviation
        return float(rows.mean())

    @property
    def sentence(self) -> str:
        count = len(self.a)
        if self.psnr == math.inf:
            return "The pictures are equal" + (f" ({count} pictures)." if count > 1 else ".")
        of = "" if self.latent_deviation is None else " of the latent"
        return f"PSNR {self.psnr:.1f} dB, SSIM {self.ssim:.4f}, deviation{of} {self.deviation:.1e}" + (
            f" (over {count} pictures)." if count > 1 else "."
        )


def compared(a: Any, b: Any, vae: Any, report_a: str, report_b: str) -> Comparison:
    """Raises NotComparable."""
    latents = [isinstance(each, dict) for each in (a, b)]
    if any(latents) != all(latents):
        raise NotComparable(
            "a and b are a picture and a latent. Expected two of a kind: decode the latent first."
        )
    off = None
    if all(latents):
        if vae is None:
            raise NotComparable(
                "a and b are latents, and no vae is connected. Expected the one that decodes them."
            )
        x, y = a["samples"], b["samples"]
        if x.is_nested or y.is_nested:
            raise NotComparable(
                "a and b are latents of several parts. Expected their pictures: decode them first."
            )
        _same_shape(x, y)
        off, (a, b) = metrics.deviation(x, y), (_decoded(vae, each) for each in (x, y))
    _same_shape(a, b)
    return Comparison(a, b, report_a, report_b, off)


def _decoded(vae: Any, samples: Tensor) -> Tensor:
    """[B, H, W, C]; the pictures of a video one after the other."""
    return vae.decode(samples).flatten(0, -4)


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise NotComparable(
            f"a is {list(a.shape)}, b is {list(b.shape)}. Expected as many pictures of the same size."
        )
