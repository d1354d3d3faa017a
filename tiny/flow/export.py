# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the flow model as files that core's Load Diffusion Model and Load VAE take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.files import write_safetensors
from ..export import narrow
from .pipeline import MODEL, VAE

FORMAT = {"format": "pt"}


def flux_weights(network: Any) -> dict[str, Tensor]:
    """A Flux in fp16, by core's names."""
    return {key: value.half() for key, value in network.state_dict().items()}


def write_model(folder: Path, network: Any) -> None:
    """``folder``/diffusion_model.safetensors."""
    write_safetensors(folder / MODEL, flux_weights(network), FORMAT)


def write_vae(folder: Path, network: Any) -> None:
    """``folder``/vae.safetensors: fp8 where that is exact (identities and zeros), else fp16."""
    weights = {key: narrow(value.detach()) for key, value in network.state_dict().items()}
    write_safetensors(folder / VAE, weights, FORMAT)
