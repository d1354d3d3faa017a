# SPDX-License-Identifier: GPL-3.0-or-later
"""Text encoders and VAEs of any size are those of transformers and diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from dizzydiff.students.errors import ConfigMismatch
from dizzydiff.students.loader import Source, load_unet
from dizzydiff.students.pipeline import load_clip, load_vae

from .networks import save_pipeline


@pytest.fixture(scope="module", params=["tiny", "kl"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"), vae=request.param)


def reference_vae(folder: Path) -> AutoencoderTiny | AutoencoderKL:
    kind = (
        AutoencoderTiny
        if "AutoencoderTiny" in (folder / "config.json").read_text(encoding="utf-8")
        else AutoencoderKL
    )
    return kind.from_pretrained(folder).eval()


def test_vae_is_diffusers_vae(pipeline: Path) -> None:
    vae, reference = load_vae(pipeline), reference_vae(pipeline / "vae")
    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        decoded = ((reference.decode(latent).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
        encoded = reference.encode(pixels.movedim(-1, 1) * 2 - 1)
    encoded = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    torch.testing.assert_close(vae.decode(latent), decoded, rtol=0, atol=1e-5)
    ours = vae.encode(pixels)
    if isinstance(reference, AutoencoderTiny):  # core samples the posterior of the other
        torch.testing.assert_close(ours, encoded, rtol=1e-4, atol=1e-5)


def test_narrow_kl_of_three_levels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = AutoencoderKL(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
    ).eval()
    reference.save_pretrained(tmp_path / "vae")
    latent = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        decoded = ((reference.decode(latent).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(load_vae(tmp_path).decode(latent), decoded, rtol=0, atol=1e-5)


def test_text_encoder_is_transformers_text_encoder(pipeline: Path) -> None:
    clip = load_clip(pipeline, [])
    reference = CLIPTextModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32).eval()
    tokens = clip.tokenize("a small red circle left of a blue square")
    ids = torch.tensor([[token for token, _ in tokens["l"][0]]])
    with torch.no_grad():
        expected = reference(ids).last_hidden_state
    torch.testing.assert_close(clip.encode_from_tokens(tokens), expected, rtol=1e-3, atol=2e-3)


def test_latents_take_the_vaes_scale(pipeline: Path) -> None:
    model = load_unet(Source(pipeline / "unet", "random"))
    scale = reference_vae(pipeline / "vae").config.scaling_factor
    latent = torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(model.model.process_latent_in(latent), latent * scale)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_weights_that_disagree_with_the_config_are_named(tmp_path: Path, part: str) -> None:
    pipeline = save_pipeline(tmp_path)
    path = next((pipeline / part).glob("*.safetensors"))
    weights = load_file(path)
    key = max(weights, key=lambda k: weights[k].ndim)
    weights[key] = torch.zeros(*[n + 1 for n in weights[key].shape])
    save_file(weights, path)
    with pytest.raises(ConfigMismatch, match=part):
        load_vae(pipeline) if part == "vae" else load_clip(pipeline, [])
