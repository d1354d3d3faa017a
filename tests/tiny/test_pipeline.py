# SPDX-License-Identifier: GPL-3.0-or-later
"""What tiny/ ships: a diffusers pipeline under 24 MB that draws what its measured quality says."""

import json
import math
import random

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from dizzydiff.tiny import codec, data, evaluate, networks, scene
from dizzydiff.tiny.train import Diffusion


@pytest.fixture(scope="module")
def tiny(root):
    return root / "tiny"


@pytest.fixture(scope="module")
def quality(tiny):
    return json.loads((tiny / "quality.json").read_text(encoding="utf-8"))


def loaded(kind, folder):
    return kind.from_pretrained(folder, torch_dtype=torch.float32).eval()


def test_all_weights_are_safetensors_of_at_most_24_megabytes(tiny):
    kinds = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    weights = [file for file in tiny.rglob("*") if file.suffix in kinds]
    assert {file.suffix for file in weights} == {".safetensors"}
    assert sum(file.stat().st_size for file in weights) <= 24 * 2**20


def test_the_scheduler_is_the_one_the_networks_were_trained_for(tiny):
    shipped = DDIMScheduler.from_pretrained(tiny / "scheduler")
    torch.testing.assert_close(shipped.alphas_cumprod, networks.scheduler().alphas_cumprod)
    assert shipped.config.prediction_type == "v_prediction"


def test_the_shipped_autoencoder_encodes_in_closed_form_and_gives_the_picture_back(tiny):
    autoencoder = loaded(AutoencoderTiny, tiny / "vae")
    rng = random.Random(3)
    pictures = torch.stack(
        [data.picture_tensor(scene.draw(scene.random_caption(rng, 1 + i % 2), rng)) for i in range(8)]
    )
    with torch.inference_mode():
        z = autoencoder.encode(2 * pictures - 1).latents
        back = autoencoder.decode(z).sample / 2 + 0.5
    torch.testing.assert_close(z, codec.encode(pictures), rtol=1e-3, atol=4e-3)
    assert (back - pictures).abs().mean() < 0.02


def test_the_student_draws_as_well_as_was_measured(tiny, quality, tokens):
    """64 captions at g = 4 in 20 steps: at least the measured share, less three standard deviations of such a
    sample.
    """
    student = loaded(UNet2DConditionModel, tiny / "unet")
    text = loaded(CLIPTextModel, tiny / "text_encoder")
    decoder = loaded(AutoencoderTiny, tiny / "vae").decoder
    captions = evaluate.test_captions(99, 64, (1, 2))
    with torch.inference_mode():
        contexts = text(tokens([str(caption) for caption in captions])).last_hidden_state
    diffusion = Diffusion.of(networks.scheduler())
    images = evaluate.draw_captions(
        evaluate.student_velocity(student, 4), contexts, decoder, diffusion, 20, seed=1
    )
    measured = next(row["student"] for row in quality["same_g"] if row["g"] == 4)
    share = measured / 100
    assert (
        evaluate.accuracy(captions, images)
        >= measured - 300 * math.sqrt(share * (1 - share) / len(captions)) - 2
    )


def test_guidance_makes_a_difference_that_grows(tiny, tokens):
    student = loaded(UNet2DConditionModel, tiny / "unet")
    text = loaded(CLIPTextModel, tiny / "text_encoder")
    noise = torch.randn(4, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        context = text(tokens(["a red circle on white"])).last_hidden_state.expand(4, -1, -1)
        v = {
            g: evaluate.student_velocity(student, g)(noise, torch.full((4,), 900), context)
            for g in (1, 2, 4, 8)
        }
    steps = [(v[g] - v[1]).norm().item() for g in (2, 4, 8)]
    assert 0 < steps[0] < steps[1] < steps[2]
