# SPDX-License-Identifier: GPL-3.0-or-later
"""Distilling any network: where guidance joins it is asked of it, it is recomputed with its guidance, and
what cannot be trained is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from torch import Tensor, nn

from dizzydiff.students.distill.errors import UnsupportedTeacher
from dizzydiff.students.distill.job import Job
from dizzydiff.students.distill.plan import Plan
from dizzydiff.students.distill.run import distill
from dizzydiff.students.distill.teacher import trainable
from dizzydiff.students.distill.time_layer import Probes, time_layer_of
from dizzydiff.students.distill.trainable import AdapterShape, Prompts, TrainableStudent
from dizzydiff.students.errors import UnsupportedModel
from dizzydiff.students.guidance import distilled_guidance
from dizzydiff.students.student_model import student_of
from dizzydiff.students.time_embedding import fitted

from .transformers import FAMILIES, SVD, build, encoder, model_of

TIME_LAYERS = {
    "SD3": "t_embedder.mlp.0",
    "Qwen-Image": "time_text_embed.timestep_embedder.linear_1",
    "WAN 2.2 5B": "time_embedding.0",
}


def job_of(name: str, path: Path, model: Any, **changes: Any) -> Job:
    family = FAMILIES[name]
    settings: dict[str, Any] = {
        "teacher": model,
        "teacher_name": name,
        "prompts": ["red", "green"],
        "encode": encoder(family.pooled),
        "shape": family.shape,
        "plan": Plan(updates=2, batch=2, rank=2, rate=0.05),
        "path": path,
    }
    return Job(**{**settings, **changes})


def gradients(name: str, checkpoint: bool) -> tuple[str, dict[str, Tensor]]:
    """The time layer, and the gradient of a prediction at g = 4 after a step that makes every part count."""
    family = FAMILIES[name]
    encode = encoder(family.pooled)
    student = TrainableStudent(
        trainable(build(name)),
        Prompts(map(encode, ["red", "green"]), encode("")),
        family.shape,
        AdapterShape(distilled_guidance((1.0, 8.0)), rank=2, seed=0),
        name,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, *family.shape, generator=generator)
    with student.training(checkpoint):
        answer = student.student(x, torch.full((2,), 0.7), torch.arange(2), torch.tensor([1.0, 4.0]))
        answer.square().mean().backward()
    return student.time_layer, {
        key: each.grad for key, each in student.parameters.items() if each.grad is not None
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_blocks_have_the_gradient_of_blocks_that_are_kept(name: str) -> None:
    """The time layer lies inside a block that gradient checkpointing runs again."""
    layer, kept = gradients(name, checkpoint=False)
    _, recomputed = gradients(name, checkpoint=True)
    assert layer == TIME_LAYERS[name]
    assert kept["guidance.weight"].abs().max() > 0 and kept.keys() == recomputed.keys()
    for key, gradient in kept.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-3, atol=1e-6, msg=key)


def sampled(model: Any, x: Tensor, conditioning: list, guidance: Any, mask: Tensor | None) -> Tensor:
    positive = [[conditioning[0][0], {**conditioning[0][1], "guidance": guidance}]]
    return comfy.sample.sample_custom(
        model,
        x,
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([0.9, 0.5, 0.0]),
        positive,
        positive,
        torch.ones_like(x),
        noise_mask=mask,
        disable_pbar=True,
        seed=0,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_rows_keep_their_guidance_where_every_frame_has_a_time_of_its_own(
    masked: bool, tmp_path: Path
) -> None:
    """WAN 2.2 5B under a mask that keeps the first frame."""
    name = "WAN 2.2 5B"
    model = build(name)
    student = student_of(model, distill(job_of(name, tmp_path / "s.safetensors", model)).adapter, name)
    x = torch.randn(2, *FAMILIES[name].shape, generator=torch.Generator().manual_seed(2))
    mask = None
    if masked:
        mask = torch.ones(1, 1, *FAMILIES[name].shape[1:])
        mask[:, :, 0] = 0.0
    red = encoder(None)("red")
    apart = [sampled(student, x[i : i + 1], red, g, mask) for i, g in enumerate((1.0, 8.0))]
    together = sampled(student, x, red, [1.0, 8.0], mask)
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)
    other = sampled(student, x[1:], red, 1.0, mask)
    assert (other - apart[1]).abs().max() > 1e-4, "the guidance has an effect"


A, B, ZERO = 1.0, 2.0, 0.0


@pytest.mark.parametrize(
    ("times", "alike", "expected"),
    [
        ([A, A], True, [1, 2]),
        ([A, B], False, [1, 2]),
        ([A, A, A, A], True, [1, 1, 2, 2]),
        ([A, A, B, B], False, [1, 1, 2, 2]),
        ([ZERO, A, ZERO, A], True, [1, 1, 2, 2]),
        ([ZERO, A, ZERO, B], False, [1, 1, 2, 2]),
        ([A, A, ZERO, ZERO], True, [1, 2, 1, 2]),
        ([A, B, ZERO, ZERO], False, [1, 2, 1, 2]),
        ([ZERO, A, A, ZERO, A, A], True, [1, 1, 1, 2, 2, 2]),
        ([A, A, ZERO, ZERO, ZERO, ZERO], True, [1, 2, 1, 2, 1, 2]),
    ],
)
def test_an_addition_joins_the_times_of_its_own_row(times: list, alike: bool, expected: list) -> None:
    """Times of a row's frames one after the other (WAN, LTX), or of all pictures and then of all
    references.
    """
    t_emb = torch.tensor(times)[:, None].expand(-1, 3)
    addition = torch.tensor([[1.0], [2.0]]).expand(2, 3)
    assert fitted(addition, t_emb, alike)[:, 0].tolist() == expected


def test_an_addition_joins_all_tokens_of_its_row() -> None:
    addition = torch.tensor([[1.0], [2.0]]).expand(2, 3)
    assert fitted(addition, torch.zeros(2, 5, 3), True).tolist() == [[[1.0] * 3], [[2.0] * 3]]


def test_different_guidance_cannot_join_one_time() -> None:
    assert fitted(torch.ones(2, 3), torch.zeros(1, 3), True).tolist() == [[1.0] * 3]
    with pytest.raises(UnsupportedModel, match="one time for all 2 rows"):
        fitted(torch.tensor([[1.0], [2.0]]), torch.zeros(1, 1), True)
    with pytest.raises(UnsupportedModel, match="3 times for 2 rows"):
        fitted(torch.ones(2, 3), torch.zeros(3, 3), True)


class Mixed(nn.Module):
    """Time reaches its layers together with x, in an order that is not that of the modules, or not at all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.other, self.late, self.early = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        time = sigma[:, None] * torch.ones(1, 4)
        if self.kind == "mixed":
            return self.other(x + time)
        if self.kind == "timeless":
            return self.other(x)
        return self.other(x) + self.late(self.early(time))


def layer_of(kind: str) -> str:
    network, one, two = Mixed(kind), torch.ones(1), torch.ones(1, 4)

    def predict(x: Tensor, sigma: Tensor) -> Any:
        return lambda: network(x, sigma)

    return time_layer_of(
        network, Probes(predict(two, one), predict(two, 2 * one), predict(2 * two, one)), "it"
    )


def test_the_first_layer_that_sees_the_time_alone_is_found_by_what_it_is_given() -> None:
    assert layer_of("apart") == "early"
    for kind in ("mixed", "timeless"):
        with pytest.raises(UnsupportedTeacher, match="it: no layer of Mixed receives the noise level alone"):
            layer_of(kind)


def test_a_network_whose_rows_are_frames_is_refused(tmp_path: Path) -> None:
    model = model_of("SVD_img2vid", SVD)

    def encode(text: str) -> list:
        generator = torch.Generator().manual_seed(len(text))
        picture = torch.randn(1, 4, 8, 8, generator=generator)
        return [[torch.randn(1, 1, 32, generator=generator), {"concat_latent_image": picture}]]

    job = job_of("SD3", tmp_path / "s.safetensors", model, teacher_name="SVD", encode=encode, shape=(4, 8, 8))
    with pytest.raises(UnsupportedTeacher, match="SVD"):
        distill(job)
    assert not list(tmp_path.iterdir())


def test_a_network_without_derivatives_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("SD3")
    network = model.model.diffusion_model
    forward = network.forward

    def detached(*args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            return forward(*args, **kwargs)

    monkeypatch.setattr(network, "forward", detached)
    with pytest.raises(UnsupportedTeacher, match="SD3"):
        distill(job_of("SD3", tmp_path / "s.safetensors", model))


def test_convolutions_over_time_are_adapted() -> None:
    _, found = gradients("WAN 2.2 5B", checkpoint=False)
    assert found["diffusion_model.patch_embedding.lora_up.weight"].abs().max() > 0
