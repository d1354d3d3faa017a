# SPDX-License-Identifier: GPL-3.0-or-later
"""A GUIDER evaluated as it is sampled: through its own ``sample``, with a sampler that asks what training
wants to know.

Model options, wrappers, hooks, second models and whatever else a guider prepares are those of its sampling.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.sampler_helpers import convert_cond
from torch import Tensor

from ..errors import StudentError
from .errors import UnsupportedGuider
from .failures import is_out_of_memory
from .guider import TeacherGuider, same_patches
from .stages import Denoise
from .trainable import TrainableStudent


class GuiderVisits:
    """``stages.Visit`` of a guider on the network of a student in training, with one row at a time.

    prompts: CONDITIONINGs. seed: of what the guider itself draws. The guider is copied, not changed.
    """

    def __init__(
        self, guided: TeacherGuider, student: TrainableStudent, prompts: Sequence[list], seed: int
    ) -> None:
        self.guided, self.student, self.prompts, self.seed = guided, student, prompts, seed
        model, own = student.model, guided.guider.model_patcher
        self.patcher = model
        if not same_patches(own, model):
            self.patcher = own.clone(model_override=model.get_clone_model_override())

    def __call__(self, walk: Callable[[Denoise], None], sigmas: Tensor, prompt: int, g: Tensor) -> None:
        """Raises UnsupportedGuider."""
        asked: list[bool] = []

        def run(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **others: Any) -> Tensor:
            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                asked.append(True)
                D = model(x.to(self.student.device), sigma.to(self.student.device), **extra_args)
                self._check(D, x, float(sigma))
                return D.float().cpu().clone()

            with torch.inference_mode(False), torch.no_grad():
                walk(denoise)
            return x

        guider, noise = self._set(prompt, g), torch.zeros(1, *self.student.shape)
        with self.student.as_teacher(), torch.no_grad(), self._saying_what_fails():
            guider.sample(
                noise,
                torch.zeros_like(noise),
                comfy.samplers.KSAMPLER(run),
                sigmas,
                denoise_mask=None,
                callback=lambda *told: None,
                disable_pbar=True,
                seed=self.seed,
            )
        if not asked:
            raise UnsupportedGuider(
                f"{self.guided.name} samples without asking the model that it gives to its sampler. Expected "
                "a guider whose predict_noise answers for each noise level."
            )

    def _set(self, prompt: int, g: Tensor) -> Any:
        """A copy of the guider, with a prompt and scales."""
        guider = copy.copy(self.guided.guider)
        guider.model_patcher = self.patcher
        guider.original_conds = {
            **guider.original_conds,
            self.guided.prompt: convert_cond(self.prompts[prompt]),
        }
        for dial, scale in zip(self.guided.dials, g.reshape(-1).tolist(), strict=False):
            setattr(guider, dial, scale)
        return guider

    def _check(self, D: Any, x: Tensor, sigma: float) -> None:
        if not isinstance(D, Tensor) or D.shape != x.shape:
            shape = list(D.shape) if isinstance(D, Tensor) else type(D).__name__
            raise UnsupportedGuider(
                f"{self.guided.name} answers a latent of shape {list(x.shape)} with {shape}. Expected the "
                "denoised latent, of the same shape."
            )
        if not bool(D.isfinite().all()):
            raise UnsupportedGuider(
                f"{self.guided.name} answers with NaN or infinity at sigma {sigma:g}. Expected finite "
                "numbers: lower its scales or the guidance range, or use a model in bf16 or fp32."
            )

    @contextlib.contextmanager
    def _saying_what_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, StudentError) or is_out_of_memory(error):
                raise
            raise UnsupportedGuider(
                f"{self.guided.name} fails where it is asked for one latent of shape "
                f"{list(self.student.shape)} ({type(error).__name__}: {error}). Expected a guider that "
                "samples this model from a prompt alone: try it with SamplerCustomAdvanced first."
            ) from error
