# SPDX-License-Identifier: GPL-3.0-or-later
"""What draft-refine is measured on: exact Gaussian mixtures and the embedded pipeline, sampled through
ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._mixture import DiagonalMixture, Dressed, GuidedMixture, flow, variance_exploding

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a small red circle left of a blue square on white"


@dataclass(frozen=True)
class Subject:
    """A model to sample: ``sample(sampler, sigmas, seeds)`` gives latents [len(seeds), ...] through
    ComfyUI.
    """

    name: str
    sigmas: Callable[[str, int, str], Tensor]
    sample: Callable[[Any, Tensor, list[int]], Tensor]
    decode: Callable[[Tensor], Tensor] | None = None
    """Pictures [B, H, W, 3] of latents."""

    @property
    def exact(self) -> bool:
        """Whether it is a mixture, whose calls cost next to nothing."""
        return self.name.startswith("mixture")


def subjects(teacher: bool, batch: bool = True) -> Iterator[Subject]:
    """Two mixtures, the embedded teacher with CFG 4 if asked for, the embedded student. ``batch``: drafts go
    into batches; else one device evaluates a state a call.
    """
    yield mixture("mixture A", DiagonalMixture(0, 6, 0.15, sampling()), batch)
    yield mixture("mixture B", DiagonalMixture(1, 3, 0.5, sampling()), batch)
    if teacher:
        yield embedded("tiny/teacher", 4.0, batch=batch)
    yield embedded("tiny", 1.0, batch=batch)


def smooth(cfg: float, of_flow: bool = False, batch: bool = True) -> Subject:
    """A mixture like pictures in 1,024 dimensions (``GuidedMixture``), as an eps or as a flow model."""
    import comfy.model_sampling

    class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    name = f"mixture of pictures, {'flow' if of_flow else 'eps'}, CFG {cfg:g}"
    levels: Any = FlowSampling() if of_flow else sampling()
    model = GuidedMixture(2, cfg, flow() if of_flow else variance_exploding(), levels)
    return mixture(name, model, batch)


def sampling() -> Any:
    """SD's sigmas, for the mixtures."""
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    return Sampling()


def mixture(name: str, model: Dressed, batch: bool = True) -> Subject:
    """A mixture inside ComfyUI's own sampler call, with the guider's part played by the mixture."""
    import comfy.samplers

    class Guider:
        def __init__(self) -> None:
            self.inner_model, self.model_patcher = (
                model.inner_model.inner_model,
                model.inner_model.model_patcher,
            )
            self.conds: dict[str, list] = {}
            self.cfg = 1.0

        def __call__(
            self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int | None = None
        ) -> Tensor:
            denoised = model(x, sigma)
            for hook in model_options.get("sampler_post_cfg_function", []):
                denoised = hook({"denoised": denoised, "uncond_denoised": denoised})
            return denoised

    def sigmas(sampler: str, steps: int, schedule: str) -> Tensor:
        return comfy.samplers.calculate_sigmas(model.inner_model.inner_model.model_sampling, schedule, steps)

    def sample(sampler: Any, sigmas: Tensor, seeds: list[int]) -> Tensor:
        noise = torch.stack(
            [torch.randn(model.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        extra = {"model_options": {"dizzydiff_devices": {"width": 0, "batch": batch}}, "seed": seeds[0]}
        guider = Guider()
        return sampler.sample(guider, sigmas, extra, None, noise, torch.zeros_like(noise), None, True)

    return Subject(name, sigmas, sample)


def embedded(
    name: str,
    cfg: float,
    prompt: str = PROMPT,
    batch: bool = True,
    patch: Callable[[Any], Any] = lambda model: model,
) -> Subject:
    """The embedded student (CFG 1, guidance 4) or its teacher, patched, a row a seed."""
    import comfy.sample
    import comfy.samplers
    import node_helpers

    from ..drafting.devices import spread

    model, clip, vae = pipeline_of(name)
    model, channels = spread(patch(model), "batch" if batch else "cpu", 0), vae.latent_channels
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
    positive = node_helpers.conditioning_set_values(positive, {"guidance": 4.0})

    def sigmas(sampler: str, steps: int, schedule: str) -> Tensor:
        return comfy.samplers.KSampler(model, steps, model.load_device, sampler, schedule, 1.0).sigmas

    def sample(sampler: Any, sigmas: Tensor, seeds: list[int]) -> Tensor:
        noise = torch.stack(
            [torch.randn(channels, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            sampler,
            sigmas,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=seeds[0],
        )

    return Subject(name if name != "tiny/flow" else f"{name}, CFG {cfg:g}", sigmas, sample, vae.decode)


def pipeline_of(name: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of an embedded pipeline: "tiny", "tiny/teacher", "tiny/flow" or its student."""
    from ..students.loader import Source, load_student, load_unet
    from ..students.pipeline import load_clip, load_vae
    from ..tiny.flow import pipeline as flow

    tiny = ROOT / "tiny"
    if name in (flow.NAME, flow.STUDENT_NAME):
        return flow.load(tiny, [], student=name == flow.STUDENT_NAME)
    teacher = name.endswith("teacher")
    model = (
        load_unet(Source(tiny / "teacher", name)) if teacher else load_student(Source(tiny / "unet", name))
    )
    return model, load_clip(tiny, []), load_vae(tiny)
