# SPDX-License-Identifier: GPL-3.0-or-later
"""The training loop of the recipe, and the teacher's loss."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .optimiser import Muon

WARM_UP, BETAS, WEIGHT_DECAY, CLIP = 200, (0.9, 0.99), 0.01, 1.0
MUON_FACTOR = 3.0
"""Muon's learning rate over AdamW's."""
EMA_DECAY = 0.999
TIME_EXPONENT = 1.3
"""Training times are T u^1.3, u uniform: 40 % of them below sigma 1, where edges and corners are decided."""
CAPTION_DROP = 0.1
LOG_EVERY = 50
OUTER = ("conv_in.", "conv_out.", "embedding", "decoder.layers.0.", "decoder.layers.18.")
"""Parts of the names of the first and last layers and of embeddings, in diffusers' networks."""


@dataclass(frozen=True)
class Schedule:
    """How long to train: a constant learning rate for ``updates``, of which the last ``decay`` bring it to
    zero linearly.
    """

    updates: int
    decay: int
    batch: int
    rate: float = 1e-3
    checkpoint_every: int = 200

    def rate_at(self, update: int) -> float:
        return self.rate * min(1.0, (update + 1) / WARM_UP, (self.updates - update) / max(1, self.decay))


def _split(model: nn.Module, outer: tuple[str, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(hidden matrices and convolutions, everything else that trains: what is named ``outer``, norms,
    biases).
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim >= 2 and not any(part in name for part in outer) else rest).append(
                parameter
            )
    return matrices, rest


class Run:
    """Weights in training, their moving average and the optimiser, saved so that an interrupted run goes on
    where it was.
    """

    def __init__(
        self, model: nn.Module, folder: Path, schedule: Schedule, outer: tuple[str, ...] = OUTER
    ) -> None:
        self.model, self.folder, self.schedule = model, folder, schedule
        self.average = copy.deepcopy(model).eval()
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.averaged = [p for p in self.average.parameters() if p.requires_grad]
        self.average.requires_grad_(False)
        matrices, rest = _split(model, outer)
        self.optimisers = {
            "muon": Muon(matrices, MUON_FACTOR * schedule.rate, WEIGHT_DECAY),
            "adamw": torch.optim.AdamW(rest, schedule.rate, BETAS, weight_decay=0.0),
        }
        self.update = 0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "checkpoint.safetensors").exists():
            self._resume()

    def step(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, CLIP)
        for name, optimiser in self.optimisers.items():
            optimiser.param_groups[0]["lr"] = self.schedule.rate_at(self.update) * (
                MUON_FACTOR if name == "muon" else 1.0
            )
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.update += 1
        decay = min(EMA_DECAY, (1 + self.update) / (10 + self.update))
        with torch.no_grad():
            torch._foreach_lerp_(list[Tensor](self.averaged), list[Tensor](self.trained), 1 - decay)

    def save(self) -> None:
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for index, moments in optimiser.state_dict()["state"].items():
                state |= {f"{name}.{index}.{k}": v for k, v in moments.items()}
        part = self.folder / "checkpoint.part"
        save_file({k: v.contiguous() for k, v in state.items()}, part, metadata={"update": str(self.update)})
        part.replace(self.folder / "checkpoint.safetensors")

    def _resume(self) -> None:
        file = self.folder / "checkpoint.safetensors"
        state = load_file(file)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        for name, optimiser in self.optimisers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in part(f"{name}.").items():
                index, moment = key.split(".")
                moments.setdefault(int(index), {})[moment] = value
            optimiser.load_state_dict(
                {"state": moments, "param_groups": optimiser.state_dict()["param_groups"]}
            )
        with safe_open(file, framework="pt") as opened:
            self.update = int(opened.metadata()["update"])

    def train(self, loss_of: Callable[[torch.Generator], Tensor], seed: int) -> None:
        """Run to the schedule's end; the random numbers of an update depend on (seed, update) alone."""
        started, since, losses = time.monotonic(), self.update, []
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            while self.update < self.schedule.updates:
                loss = loss_of(torch.Generator().manual_seed(seed * 10_000_019 + self.update))
                self.step(loss)
                losses.append(loss.item())
                if self.update % LOG_EVERY == 0:
                    seconds = (time.monotonic() - started) / (self.update - since)
                    row = {
                        "update": self.update,
                        "loss": sum(losses) / len(losses),
                        "seconds_per_update": round(seconds, 3),
                    }
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    losses.clear()
                if self.update % self.schedule.checkpoint_every == 0 or self.update == self.schedule.updates:
                    self.save()


@dataclass(frozen=True)
class Diffusion:
    """The forward process z_t = alpha_t x + sigma_t eps on the scheduler's discrete times; targets are v =
    alpha eps - sigma x.
    """

    alpha: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, scheduler) -> Diffusion:
        cumulative = scheduler.alphas_cumprod
        return cls(cumulative.sqrt(), (1 - cumulative).sqrt())

    def noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator)

    def noised(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(z_t, t, v) at random times."""
        t = (len(self.alpha) * torch.rand(len(x), generator=generator) ** TIME_EXPONENT).long()
        eps = self.noise(x.shape, generator)
        alpha, sigma = self.alpha[t, None, None, None], self.sigma[t, None, None, None]
        return alpha * x + sigma * eps, t, alpha * eps - sigma * x


class TextToLatent(nn.Module):
    """Denoiser and text encoder as one module, trained together."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        context = self.text_encoder(tokens).last_hidden_state
        return self.unet(z, t, context, return_dict=False)[0]


@dataclass(frozen=True)
class Pictures:
    """The training set: latents [n, 4, 12, 12], caption tokens [n, 77] and the tokens of the empty caption
    [77].
    """

    latents: Tensor
    tokens: Tensor
    empty: Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        return self.latents[rows].float(), self.tokens[rows]


def train_teacher(
    model: TextToLatent, pictures: Pictures, diffusion: Diffusion, folder: Path, schedule: Schedule, seed: int
) -> TextToLatent:
    """Denoising score matching on v with captions dropped at random, so that classifier-free guidance
    works.
    """
    run = Run(model, folder, schedule)

    def loss(generator: torch.Generator) -> Tensor:
        x, tokens = pictures.batch(schedule.batch, generator)
        dropped = torch.rand(len(x), generator=generator) < CAPTION_DROP
        z, t, v = diffusion.noised(x, generator)
        return nn.functional.mse_loss(model(z, t, torch.where(dropped[:, None], pictures.empty, tokens)), v)

    run.train(loss, seed)
    return cast(TextToLatent, run.average)
