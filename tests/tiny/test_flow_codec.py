# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow model's latents: an orthonormal transform of blocks, cut off above its low frequencies."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dizzydiff.tiny import data, scene
from dizzydiff.tiny.flow import codec


def test_the_basis_is_orthonormal():
    rows = codec.basis().double().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3))
def test_every_latent_is_of_a_picture_that_gives_it_back(seed, rows, columns):
    z = torch.randn(2, 16, rows, columns, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(codec.encode(codec.decode(z)), z, rtol=0, atol=1e-5)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_flat_colours_are_kept_exactly(red, green, blue):
    flat = torch.tensor([red, green, blue], dtype=torch.float32)[None, :, None, None].expand(1, 3, 8, 8)
    torch.testing.assert_close(codec.decode(codec.encode(flat)), flat, rtol=0, atol=1e-5)


def test_mid_grey_is_zero():
    assert codec.encode(torch.full((1, 3, 8, 8), 0.5)).abs().max() < 1e-6


def test_what_is_dropped_of_this_world_is_a_hundredth_of_it():
    rng = random.Random(0)
    pictures = torch.stack(
        [data.picture_tensor(scene.draw(scene.random_caption(rng, 1 + i % 2), rng)) for i in range(60)]
    )
    lost = (codec.decode(codec.encode(pictures)) - pictures).square().mean()
    assert lost / pictures.var() < 0.01
    assert codec.encode(pictures).std() == pytest.approx(0.5, abs=0.1)
