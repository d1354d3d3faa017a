# SPDX-License-Identifier: GPL-3.0-or-later
"""All states of a round as one batch, on the model's own device."""

from __future__ import annotations

import statistics
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...common.memory import is_out_of_memory
from ...common.messages import inform
from ..errors import Undraftable
from ..speculation import State
from .base import Backend, Request
from .compare import compute_dtype, disagreement, rtol
from .graph import active_conditions, foreign, same_conditions

DEFAULT_WIDTH = 4
CHECKS = 3
"""Rounds of a picture in which a row is evaluated alone as well: the first, and others spread over the
run.
"""
MAX_COST = 0.8
"""A batch of k that costs more than this part of k model calls is said not to pay."""


class Batch(Backend):
    """All states of a round as one batch with a sigma a row.

    Only where Draft Devices says so, and only of core's own: much in a graph looks at one noise level for a
    whole batch, at the number of rows, or at all rows together. Whether the network itself does is found out
    from it: in some rounds the last state is evaluated alone as well.
    """

    def __init__(self, request: Request, width: int) -> None:
        super().__init__(request, width)
        self._clock = request.clock
        self._steps_left = CHECKS
        self._next_check = 0.0
        self._alone: list[float] = []
        self._together: list[float] = []

    @classmethod
    def refusal(cls, request: Request) -> Undraftable | None:
        if not request.wish.get("batch", False):
            return Undraftable(
                "there is one device, which evaluates one state at a time (Draft Devices can name "
                "several, or a batch)"
            )
        if (who := foreign(request.model, request.options)) is not None:
            return Undraftable(f"{who} may use one noise level for a whole batch, or mix its rows")
        return None

    @classmethod
    def make(cls, request: Request) -> Batch:
        return cls(request, request.states_a_round or DEFAULT_WIDTH)

    def may_skip(self, before: float, sigma: float, behind: float) -> bool:
        return same_conditions(self.request.model, (before, sigma, behind))

    def __str__(self) -> str:
        return f"one device in batches of up to {self.width}"

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        if len(states) == 1:
            return super().evaluate(states, arguments)
        started, predictions = self._clock(), list[Tensor]()
        try:
            predictions = self._batched(states, arguments)
        except Exception as error:
            if not is_out_of_memory(error, comfy.model_management.is_oom):
                raise self.refuse(
                    f"this model cannot evaluate several noise levels in a batch ({type(error).__name__}: "
                    f"{error})"
                ) from error
        if not predictions:  # out here, where no error holds what the batch had made
            return self._narrower(states, arguments)
        if self._due(states):
            _wait_for(predictions[-1])
            self._together.append((self._clock() - started) / len(states))
            self._compare(states[-1], predictions[-1], arguments)
        return predictions

    def _due(self, states: list[State]) -> bool:
        """Whether this round is checked: the first with drafts, and those that cross a third of the
        noise levels.
        """
        if self.checked or not self._steps_left:
            return False
        sigmas = self.request.model.sigmas
        done = float((sigmas > states[0].sigma).sum()) / max(1, len(sigmas) - 1)
        if done < self._next_check:
            return False
        self._next_check = done + (1 - done) / self._steps_left
        self._steps_left -= 1
        return True

    def _compare(self, state: State, prediction: Tensor, arguments: dict[str, Any]) -> None:
        """Raises Undraftable unless a row of the batch is what the state gets alone."""
        started = self._clock()
        (alone,) = super().evaluate([state], arguments)
        _wait_for(alone)
        self._alone.append(self._clock() - started)
        off = disagreement(prediction, alone)
        if not off <= rtol(compute_dtype(self.request.guider)):
            raise self.refuse(
                "this model predicts something else in a batch of several noise levels than alone (off by "
                f"{off:.1e} of a prediction)"
            )
        if not self._steps_left:
            self.passed()
            self._tell_cost()

    def _tell_cost(self) -> None:
        cost = statistics.median(self._together) / max(statistics.median(self._alone), 1e-9)
        if cost > MAX_COST:
            inform(
                f"a state of a batch takes {cost:.0%} of the time of a state alone here: drafts in batches "
                "gain little or nothing on this device."
            )

    def _narrower(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        self.width = max(1, len(states) // 2)
        self.request.warn(
            f"a batch of {len(states)} states does not fit into memory; going on with {self.width}."
        )
        comfy.model_management.soft_empty_cache()
        return super().evaluate(states[:1], arguments)

    def _batched(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        """States that see the same conditioning go together: its time ranges are decided by one sigma a
        batch.
        """
        groups: dict[tuple, list[int]] = {}
        for i, state in enumerate(states):
            groups.setdefault(
                active_conditions(self.model, torch.tensor(state.sigma, dtype=state.x.dtype)), []
            ).append(i)
        predictions: dict[int, Tensor] = {}
        for rows in groups.values():
            together = self._group([states[i] for i in rows], arguments)
            predictions.update(zip(rows, together.chunk(len(rows), dim=1), strict=True))
        return [predictions[i] for i in range(len(states))]

    def _group(self, states: list[State], arguments: dict[str, Any]) -> Tensor:
        k, rows = len(states), states[0].x.shape[0]
        if k == 1:
            return super().evaluate(states, arguments)[0]
        x = torch.cat([state.x for state in states])
        sigma = torch.tensor([state.sigma for state in states], dtype=x.dtype).repeat_interleave(rows)
        sigma = sigma.to(x.device, non_blocking=True)
        model = comfy.samplers.KSamplerX0Inpaint(self.model.inner_model, self.model.sigmas)
        mask, replaced = arguments.get("denoise_mask"), {}
        if mask is not None:
            model.noise = repeat_rows(self.model.noise, rows, k)
            model.latent_image = repeat_rows(self.model.latent_image, rows, k)
            mask_function = arguments["model_options"].get("denoise_mask_function")
            if mask_function is None:
                mask = repeat_rows(mask, rows, k)
            else:
                extra = {"model": self.model.inner_model, "sigmas": self.model.sigmas}
                masks = [mask_function(state.sigmas, mask, extra_options=extra) for state in states]
                mask = torch.cat([repeat_rows(each, rows, 1) for each in masks])
                replaced["denoise_mask_function"] = lambda sigma, mask, extra_options: mask
        return self.predict(model, x, sigma, {**arguments, "denoise_mask": mask}, **replaced)


def _wait_for(tensor: Tensor) -> None:
    """Until the device has made it."""
    float(tensor.flatten()[0])


def repeat_rows(tensor: Tensor, rows: int, k: int) -> Tensor:
    """A batch of ``rows`` rows (given as that many or as one) k times."""
    return tensor.expand(rows, *tensor.shape[1:]).repeat(k, *[1] * (tensor.ndim - 1))
