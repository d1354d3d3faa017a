# SPDX-License-Identifier: GPL-3.0-or-later
"""Two things that are compared, whatever they are: pictures, or latents that a VAE makes pictures of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .errors import NotComparable
from .metrics import deviation, psnr, ssim


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

    @property
    def deviation(self) -> Tensor:
        """[B], of the latents where there are any."""
        return deviation(self.a, self.b) if self.latent_deviation is None else self.latent_deviation

    def sentence(self) -> str:
        """The means over the batch, and of what they are."""
        rows = f" (means of {len(self.a)} pictures)" if len(self.a) > 1 else ""
        of = "" if self.latent_deviation is None else " of the latent"
        if bool((self.a == self.b).all()):
            return f"The pictures are equal{rows.replace('means of ', '')}."
        return (
            f"PSNR {float(psnr(self.a, self.b).mean()):.1f} dB, "
            f"SSIM {float(ssim(self.a, self.b).mean()):.4f}, "
            f"deviation{of} {float(self.deviation.mean()):.1e}{rows}."
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
        off, (a, b) = deviation(x, y), (_decoded(vae, each) for each in (x, y))
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
