# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether two predictions of one state are the same but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

RTOL = {torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""RMS of the difference over RMS of a prediction, by the dtype that the network computes in."""
DEFAULT_RTOL = 1e-3
"""For fp32, which some devices multiply in fewer bits."""


def disagreement(one: Tensor, other: Tensor) -> float:
    """RMS(one - other) over RMS(other), of the row where it is largest. Predictions are [P, B, ...]."""
    one, other = (prediction.flatten(2).float() for prediction in (one, other))
    off, size = ((part.square().mean(2)).sqrt() for part in (one - other, other))
    return float((off / size.clamp(min=torch.finfo(torch.float32).tiny)).max())


def rtol(dtype: torch.dtype) -> float:
    return RTOL.get(dtype, DEFAULT_RTOL if dtype.itemsize >= 4 else max(RTOL.values()))


def compute_dtype(guider: object) -> torch.dtype:
    """What the guider's network computes in."""
    model = getattr(guider, "inner_model", None)
    found = getattr(model, "get_dtype_inference", lambda: torch.float32)()
    return found if isinstance(found, torch.dtype) else torch.float32
