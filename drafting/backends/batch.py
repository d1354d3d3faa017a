# SPDX-License-Identifier: GPL-3.0-or-later
"""All states of a round as one batch, on the model's own device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..speculation import State
from .base import POST_CFG, Backend, Request

log = logging.getLogger("dizzydiff")

DEFAULT_WIDTH = 4
MAX_COST = 0.8
"""A batch of k must cost less than this part of k model calls to be kept."""
UNBATCHABLE = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    POST_CFG,
    "sampler_calc_cond_batch_function",
    "model_function_wrapper",
    "context_handler",
)
"""Options that may look at one sigma for a whole batch."""


class Batch(Backend):
    """All states of a round as one batch with a sigma a row, on the model's own device."""

    def __init__(self, request: Request, width: int, must_pay: bool, clock: Callable[[], float]) -> None:
        super().__init__(request, width)
        self._must_pay, self._clock = must_pay, clock
        self._alone: list[float] = []

    @classmethod
    def refusal(cls, request: Request) -> str:
        readers = [key for key in UNBATCHABLE if request.options.get(key)]
        conditions = request.model.inner_model.conds.values()
        if any("hooks" in condition for group in conditions for condition in group):
            readers.append("hooks")
        if not readers:
            return ""
        return f"there is one device, and {', '.join(readers)} may not understand a batch of several sigmas"

    @classmethod
    def make(cls, request: Request) -> Batch:
        wanted = request.wish.get("batch", False)
        return cls(request, request.states_a_round or DEFAULT_WIDTH, not wanted, request.clock)

    @property
    def capacity(self) -> int:
        return 1 if self._must_pay and len(self._alone) < 2 else self.width

    def __str__(self) -> str:
        return f"batches of up to {self.width}"

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        started = self._clock()
        try:
            predictions = self._batched(states, arguments)
            if self._must_pay:
                float(predictions[-1].flatten()[0])  # waits for the device
        except torch.OutOfMemoryError:
            if len(states) == 1:
                raise
            self.width = max(1, len(states) // 2)
            log.warning(
                "DizzyDiff: a batch of %d states does not fit into memory; going on with %d.",
                len(states),
                self.width,
            )
            comfy.model_management.soft_empty_cache()
            return super().evaluate(states, arguments)
        if self._must_pay:
            self._judge(len(states), self._clock() - started)
        return predictions

    def _judge(self, width: int, seconds: float) -> None:
        """Give up drafting when a batch costs nearly as much as its states apart; the first call of a run
        warms up.
        """
        if width == 1:
            self._alone.append(seconds)
            return
        self._must_pay = False
        cost = seconds / (width * self._alone[-1])
        if cost > MAX_COST:
            self.width = 1
            log.info(
                "DizzyDiff: a batch of %d costs %.0f %% of %d calls here, so this image is sampled without "
                "drafts.",
                width,
                100 * cost,
                width,
            )

    def _batched(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        """States that see the same conditioning go together: its time ranges are decided by one sigma a
        batch.
        """
        groups: dict[tuple, list[int]] = {}
        for i, (_, sigma) in enumerate(states):
            groups.setdefault(self._active(sigma), []).append(i)
        predictions: dict[int, Tensor] = {}
        for rows in groups.values():
            together = self._group([states[i] for i in rows], arguments)
            predictions.update(zip(rows, together.chunk(len(rows), dim=1), strict=True))
        return [predictions[i] for i in range(len(states))]

    def _group(self, states: list[State], arguments: dict[str, Any]) -> Tensor:
        k, rows = len(states), states[0][0].shape[0]
        x = torch.cat([x for x, _ in states])
        sigma = torch.tensor([sigma for _, sigma in states], dtype=x.dtype).repeat_interleave(rows)
        sigma = sigma.to(x.device, non_blocking=True)
        if k == 1:
            return self.predict(self.model, x, sigma, arguments)
        model = comfy.samplers.KSamplerX0Inpaint(self.model.inner_model, self.model.sigmas)
        mask, options = arguments.get("denoise_mask"), {}
        if mask is not None:
            model.noise = repeat_rows(self.model.noise, rows, k)
            model.latent_image = repeat_rows(self.model.latent_image, rows, k)
            mask_function = arguments["model_options"].get("denoise_mask_function")
            if mask_function is None:
                mask = repeat_rows(mask, rows, k)
            else:
                extra = {"model": self.model.inner_model, "sigmas": self.model.sigmas}
                masks = [mask_function(x.new_full([rows], s), mask, extra_options=extra) for x, s in states]
                mask = torch.cat([repeat_rows(each, rows, 1) for each in masks])
                options["denoise_mask_function"] = lambda sigma, mask, extra_options: mask
        return self.predict(model, x, sigma, {**arguments, "denoise_mask": mask}, **options)

    def _active(self, sigma: float) -> tuple:
        """Which conditions, and which of their ControlNets, take part at sigma."""

        def within(start: float | None, end: float | None) -> bool:
            return (start is None or sigma <= start) and (end is None or sigma >= end)

        seen = []
        for conditions in self.model.inner_model.conds.values():
            for condition in conditions:
                seen.append(within(condition.get("timestep_start"), condition.get("timestep_end")))
                control = condition.get("control")
                while control is not None:
                    seen.append(within(*(control.timestep_range or (None, None))))
                    control = control.previous_controlnet
        return tuple(seen)


def repeat_rows(tensor: Tensor, rows: int, k: int) -> Tensor:
    """A batch of ``rows`` rows (given as that many or as one) k times."""
    return tensor.expand(rows, *tensor.shape[1:]).repeat(k, *[1] * (tensor.ndim - 1))
