# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded autoencoder: its encoder is the closed form, its decoder starts from the block means."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dizzydiff.tiny import codec, data, networks, scene


@pytest.fixture(scope="module")
def autoencoder():
    model = networks.autoencoder()
    model.load_state_dict(model.state_dict() | codec.closed_form_encoder(model.state_dict()))
    return model.double().eval()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 4))
def test_the_written_encoder_is_the_closed_form(autoencoder, seed, rows, columns):
    pictures = torch.rand(
        2, 3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    with torch.inference_mode():
        torch.testing.assert_close(
            autoencoder.encode(2 * pictures - 1).latents, codec.encode(pictures), rtol=0, atol=1e-5
        )


def test_the_gradient_channel_tells_where_an_edge_runs():
    picture = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    picture[..., 4:, :] = 1
    below = codec.encode(picture)
    assert below[0, 3, 0, 0] == pytest.approx(0.25 / codec.SCALE_GRADIENT)
    assert codec.encode(picture.flip(2))[0, 3, 0, 0] == pytest.approx(-0.25 / codec.SCALE_GRADIENT)


def test_the_untrained_decoder_repeats_the_block_means():
    model = networks.autoencoder()
    codec.start_decoder(model.decoder)
    z = torch.zeros(1, 4, 3, 3).uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        picture = model.decode(z).sample * 0.5 + 0.5
    torch.testing.assert_close(
        picture,
        (torch.tanh(z[:, :3] / 3) * 3 * codec.SCALE + 0.5).repeat_interleave(8, 2).repeat_interleave(8, 3),
    )


def test_captions_drawn_in_training_have_latents_of_unit_size():
    rng = random.Random(0)
    pictures = [
        data.picture_tensor(scene.draw(scene.random_caption(rng, 1 + i % 2), rng)) for i in range(200)
    ]
    assert 0.7 < codec.encode(torch.stack(pictures)).std() < 1.2
