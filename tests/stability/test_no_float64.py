# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile is measured on a device that has no float64, and is the host's."""

from __future__ import annotations

import torch
from torch import Tensor

from devtools.pretend_device import Away, booked
from dizzydiff.stability.profile import level_sigmas, measure


def test_a_device_without_float64_is_measured_as_the_host_is() -> None:
    noise = 14.6 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    sigmas = level_sigmas(14.6, 0.03, 8, False)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        assert isinstance(x, Away) or not away
        return torch.tanh(x) / (1 + sigma)

    away = False
    expected = measure(denoise, noise, sigmas, 1, False, lambda made, of: None)
    away = True
    with booked(float64=False):
        profile = measure(denoise, Away(noise), Away(sigmas.float()), 1, False, lambda made, of: None)
    torch.testing.assert_close(profile.states, expected.states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(profile.responses, expected.responses, rtol=1e-4, atol=1e-4)
    assert type(profile.denoised) is Tensor
