# SPDX-License-Identifier: GPL-3.0-or-later
"""A GUIDER of another pack."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor


class Falling(comfy.samplers.CFGGuider):
    """Guidance that falls with the noise level, which it takes as one number."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = 0) -> Any:
        sigma, prompts = timestep.max().item(), [self.conds["positive"], self.conds["negative"]]
        cond, uncond = comfy.samplers.calc_cond_batch(
            self.inner_model, prompts, x, timestep, model_options or {}
        )
        return uncond + (1 + 3 * sigma / (1 + sigma)) * (cond - uncond)
