# SPDX-License-Identifier: GPL-3.0-or-later
"""Which weights a MODEL has."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

PREFIX = "diffusion_model."
SAMPLED_VALUES = 64
"""First values of each tensor that are hashed."""


def fingerprint(patcher: Any) -> str:
    """16 hexadecimal digits of a MODEL's weights, without the patches on top: names, shapes, first values."""
    digest = hashlib.sha256()
    for key, value in sorted(patcher.model.diffusion_model.state_dict().items()):
        backup = patcher.backup.get(PREFIX + key)
        values = (value if backup is None else backup.weight).flatten()[:SAMPLED_VALUES]
        digest.update(f"{key} {list(value.shape)}".encode())
        digest.update(values.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
