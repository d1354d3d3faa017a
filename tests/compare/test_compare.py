# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers by which pictures are compared, against their definitions, and what is drawn of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dizzydiff.compare.comparison import Comparison, compared
from dizzydiff.compare.errors import NotComparable
from dizzydiff.compare.metrics import deviation, psnr, ssim
from dizzydiff.compare.picture import GAP, PANEL, draw


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def ssim_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. (2004) of one channel [H, W] in float64, without a border of five pixels."""

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, radius=5)[5:-5, 5:-5]

    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    top, bottom = (2 * mu_x * mu_y + c1) * (2 * cov + c2), (mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2)
    return float((top / bottom).mean())


def test_ssim_is_that_of_its_authors_row_by_row() -> None:
    x = pictures(10, 24, 33, 3)
    y = (x + 0.2 * pictures(10, 24, 33, 3, seed=1)).clamp(0, 1)
    expected = [
        np.mean([ssim_by_scipy(*(z[i, ..., c].double().numpy() for z in (x, y))) for c in range(3)])
        for i in range(10)
    ]
    np.testing.assert_allclose(ssim(x, y), expected, rtol=1e-4)


@given(st.floats(0.001, 0.5), st.floats(0.1, 0.5))
def test_an_offset_has_the_psnr_and_the_deviation_of_its_size(offset: float, level: float) -> None:
    x = torch.full((2, 16, 16, 3), level)
    np.testing.assert_allclose(psnr(x + offset, x), -20 * math.log10(offset), rtol=1e-3)
    np.testing.assert_allclose(deviation(x + offset, x), offset / level, rtol=1e-3)


def test_equal_pictures_are_equal() -> None:
    x = pictures(2, 5, 7, 3)
    assert psnr(x, x).isinf().all() and (deviation(x, x) == 0).all()
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    assert deviation(torch.zeros(1, 4), torch.zeros(1, 4)) == 0
    assert Comparison(x, x).sentence == "The pictures are equal (2 pictures)."


def test_one_equal_pair_among_others_makes_no_batch_equal() -> None:
    b = torch.full((2, 32, 32, 3), 0.5)
    a = b.clone()
    a[1] += 0.01
    assert "PSNR 43.0 dB" in Comparison(a, b).sentence and "(over 2 pictures)" in Comparison(a, b).sentence


def test_the_sentence_has_the_numbers() -> None:
    x = torch.full((1, 32, 32, 3), 0.5)
    assert "PSNR 40.0 dB" in Comparison(x + 0.01, x).sentence
    assert "deviation 2.0e-02" in Comparison(x + 0.01, x).sentence
    of_latents = Comparison(x + 0.01, x, latent_deviation=torch.tensor([3e-3]))
    assert "deviation of the latent 3.0e-03" in of_latents.sentence


def test_a_b_and_what_they_differ_by_stand_side_by_side() -> None:
    a, b = torch.zeros(2, 8, 16, 3), torch.zeros(2, 8, 16, 3)
    a[..., 0], b[..., 0], b[:, :, :8, 1] = 0.5, 0.5, 0.04
    picture = np.asarray(draw(Comparison(a, b, "said of a", "said of b")))
    centre = picture.shape[0] // 3
    left, middle, right = (GAP + n * (PANEL + GAP) for n in range(3))
    assert tuple(picture[centre, left + 9]) == (128, 0, 0)
    assert tuple(picture[centre, middle + 9]) == (128, 10, 0)
    assert tuple(picture[centre, right + 9]) == (0, 204, 0), "20 times as bright"
    assert tuple(picture[centre, right + PANEL - 9]) == (0, 0, 0)
    longer = draw(Comparison(a, b, "said of a, and much more than fits into a line above one picture"))
    assert longer.height > picture.shape[0]


@pytest.mark.parametrize("channels", [1, 4])
def test_masks_and_pictures_with_alpha_are_drawn(channels: int) -> None:
    x = pictures(1, 8, 8, channels)
    assert draw(Comparison(x, x)).mode == "RGB"


class Decoder:
    def decode(self, samples: Tensor) -> Tensor:
        return samples.movedim(1, -1).abs().clamp(0, 1)


def test_latents_are_decoded_and_measured_as_latents() -> None:
    x = torch.ones(2, 3, 8, 8)
    found = compared({"samples": 1.1 * x}, {"samples": x}, Decoder(), "", "")
    assert found.deviation == pytest.approx(0.1)
    assert found.a.shape == (2, 8, 8, 3)
    video = torch.ones(1, 3, 4, 8, 8)
    assert compared({"samples": video}, {"samples": video}, Decoder(), "", "").a.shape == (4, 8, 8, 3)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (torch.ones(1, 8, 8, 3), {"samples": torch.ones(1, 4, 1, 1)}, "a picture and a latent"),
        (torch.ones(1, 8, 8, 3), torch.ones(1, 8, 9, 3), r"\[1, 8, 8, 3\], b is \[1, 8, 9, 3\]"),
        ({"samples": torch.ones(1, 4, 1, 1)}, {"samples": torch.ones(1, 4, 1, 1)}, "no vae"),
    ],
)
def test_what_cannot_be_compared_is_said(a: object, b: object, says: str) -> None:
    with pytest.raises(NotComparable, match=says):
        compared(a, b, None, "", "")
