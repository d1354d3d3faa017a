# SPDX-License-Identifier: GPL-3.0-or-later
"""What the embedded pipeline's text encoder says of captions, as ComfyUI's CLIP Text Encode hands it on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...common.files import write_safetensors

BATCH = 256


@torch.inference_mode()
def encode(pipeline: Path, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Contexts [n, 77, 64] and pooled outputs [n, 64] of captions. ComfyUI must be importable."""
    from ...students.pipeline import load_clip

    clip = load_clip(pipeline, [])
    clip.load_model()
    encoder = clip.cond_stage_model.clip_l
    contexts, pooled = [], []
    for start in range(0, len(captions), BATCH):
        tokens = [
            [token for token, _ in clip.tokenize(caption)["l"][0]]
            for caption in captions[start : start + BATCH]
        ]
        both = encoder(tokens)
        contexts.append(both[0].float())
        pooled.append(both[1].float())
    return torch.cat(contexts), torch.cat(pooled)


def encoded(folder: Path, pipeline: Path, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """:func:`encode` in fp16, kept in a file in ``folder`` that is named after the captions."""
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    file = folder / f"text-{digest[:16]}.safetensors"
    if not file.exists():
        context, pooled = encode(pipeline, captions)
        write_safetensors(file, {"context": context.half(), "pooled": pooled.half()}, {})
    state = load_file(file)
    return state["context"], state["pooled"]
