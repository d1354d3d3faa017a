# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded flow model in core's hands: detected as Flux, the same predictions, the same latents."""

from __future__ import annotations

import itertools
import random
import shutil
from dataclasses import replace
from pathlib import Path

import comfy.model_base
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import node_helpers
import pytest
import torch
from safetensors.torch import load_file

from dizzydiff.nodes.students import LoadPipeline
from dizzydiff.students.loader import Source, load_unet
from dizzydiff.students.student_model import takes_guidance
from dizzydiff.tiny import data, scene, train
from dizzydiff.tiny.evaluate import accuracy
from dizzydiff.tiny.evaluate import test_captions as captions_of
from dizzydiff.tiny.flow import autoencoder, codec, export, network, pipeline, student
from dizzydiff.tiny.flow.evaluate import Judge, guided_velocity, noise_of, simple_sigmas
from dizzydiff.tiny.flow.forward import Text, velocity
from dizzydiff.tiny.flow.train import Pictures, flow_matching_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


@pytest.fixture
def flux():
    """A Flux of the recipe's size in which every weight matters."""
    made = network.flux(generator())
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters()):
            parameter.add_(0.05 * normal(*parameter.shape, seed=seed))
    return made.requires_grad_(False)


@pytest.fixture
def file(flux, tmp_path: Path) -> Path:
    export.write_model(tmp_path, flux)
    return tmp_path / pipeline.MODEL


def predicted(patcher) -> torch.Tensor:
    """v of a MODEL, as samplers ask for it."""
    x, t = normal(2, *network.LATENT), torch.tensor([0.3, 0.9])
    model = patcher.model
    context, pooled = normal(2, 77, 64, seed=2), normal(2, 64, seed=3)
    return model.apply_model(x, t, c_crossattn=context, y=pooled, guidance=torch.tensor([3.5, 3.5]))


def test_core_takes_the_file_for_flux_with_its_guidance_input_and_shift(file: Path) -> None:
    model = comfy.sd.load_diffusion_model(str(file)).model
    assert type(model) is comfy.model_base.Flux
    assert model.diffusion_model.params.guidance_embed
    assert model.latent_format.latent_channels == 16
    assert model.model_sampling.shift == pytest.approx(1.15)
    torch.testing.assert_close(
        model.model_sampling.sigma(torch.tensor([1.0, 0.5, 0.25])), torch.tensor(simple_sigmas(4))[[0, 2, 3]]
    )


def test_the_pack_and_core_load_the_same_predictions(file: Path) -> None:
    by_core, by_pack = comfy.sd.load_diffusion_model(str(file)), load_unet(Source(file, "tiny/flow"))
    with torch.inference_mode():
        assert torch.equal(predicted(by_core), predicted(by_pack))


def test_its_guidance_input_counts_as_one_where_it_does_anything(file: Path, root: Path) -> None:
    assert takes_guidance(load_unet(Source(file, "tiny/flow")))
    fp8 = load_unet(Source(file, "tiny/flow", "fp8_e4m3fn"))
    assert fp8.model.diffusion_model.guidance_in.out_layer.weight.dtype == torch.float8_e4m3fn
    assert takes_guidance(fp8)
    model, *_ = LoadPipeline.execute(pipeline.NAME).result
    assert not takes_guidance(model), "the teacher is sampled with CFG"


@pytest.mark.parametrize("guidance", [None, 3.5])
def test_the_training_pass_is_cores(flux, guidance: float | None) -> None:
    x, t = normal(2, *network.LATENT), torch.tensor([0.3, 0.9])
    text = Text(normal(2, 20, 64, seed=2), normal(2, 64, seed=3))
    scale = None if guidance is None else torch.full((2,), guidance)
    with torch.inference_mode():
        ours = velocity(flux, x, t, text, scale)
        core = flux(x.clone(), t, text.context, text.pooled, scale)
    torch.testing.assert_close(ours, core, rtol=1e-4, atol=1e-5)


def test_copies_of_a_token_are_one_token_that_counts_more(flux) -> None:
    x, t = normal(2, *network.LATENT), torch.tensor([0.3, 0.9])
    context, pooled = normal(2, 8, 64, seed=2), normal(2, 64, seed=3)
    copied = torch.cat([context, context[:, -1:].expand(-1, 62, -1)], dim=1)
    log_copies = torch.tensor([1.0] * 7 + [63.0]).log()
    with torch.inference_mode():
        torch.testing.assert_close(
            velocity(flux, x, t, Text(context, pooled, log_copies)),
            velocity(flux, x, t, Text(copied, pooled)),
            rtol=1e-4,
            atol=1e-5,
        )


def test_guidance_goes_from_the_empty_caption_to_this_one(flux) -> None:
    x, t = normal(2, *network.LATENT), torch.tensor([0.3, 0.9])
    text = Text(normal(2, 20, 64, seed=2), normal(2, 64, seed=3))
    empty = Text(normal(1, 20, 64, seed=4), normal(1, 64, seed=5))
    of_empty = Text(empty.context.expand(2, -1, -1), empty.pooled.expand(2, -1))
    with torch.inference_mode():
        with_text, without = (velocity(flux, x, t, each) for each in (text, of_empty))
        for g in (0.0, 1.0, 4.0):
            torch.testing.assert_close(
                guided_velocity(flux, x, t, text, empty, g),
                without + g * (with_text - without),
                rtol=1e-4,
                atol=1e-4,
            )


def test_the_judge_gives_each_caption_its_own_picture(flux) -> None:
    """A decoder that draws the first five captions in their order, and leaves out the sixth's shape."""
    captions = captions_of(3, 6, (1, 2))
    drawings = [scene.draw(caption, random.Random(i)) for i, caption in enumerate(captions)]
    pictures = torch.stack([data.picture_tensor(drawing) for drawing in drawings])
    pictures[5] = 0.5
    judge = Judge(
        network=flux,
        encode=lambda texts: (normal(len(texts), 4, 64), normal(len(texts), 64)),
        decode=lambda z: pictures[: len(z)],
    )
    assert judge.score(captions, 1, seed=0) == pytest.approx(83.3)


def test_core_encodes_to_the_closed_form_and_decodes_from_it(root: Path, tmp_path: Path) -> None:
    weights = load_file(root / "tiny" / "vae" / "diffusion_pytorch_model.safetensors")
    decoder = {key: value for key, value in weights.items() if key.startswith("decoder.")}
    export.write_vae(tmp_path, autoencoder.initial(decoder))
    state, metadata = comfy.utils.load_torch_file(str(tmp_path / pipeline.VAE), return_metadata=True)
    vae = comfy.sd.VAE(sd=state, metadata=metadata)
    assert vae.latent_channels == codec.CHANNELS
    picture = torch.rand(1, 16, 24, 3, generator=generator())
    z = vae.encode(picture)
    x = (z - autoencoder.LATENT_SHIFT) * autoencoder.LATENT_SCALE
    torch.testing.assert_close(x, codec.encode(picture.movedim(3, 1)), rtol=0, atol=2e-2)
    drawing = scene.draw(scene.parse("a large red circle above a blue square on white"), random.Random(0))
    pixels = data.picture_tensor(drawing).movedim(0, 2)[None]
    assert (vae.decode(vae.encode(pixels)).float() - pixels).abs().mean() < 0.02


@pytest.fixture
def embedded(flux, root: Path, tmp_path: Path) -> Path:
    """The embedded pipeline's folder with a flow model in it."""
    folder = tmp_path / "tiny"
    shutil.copytree(root / "tiny" / "text_encoder", folder / "text_encoder")
    export.write_model(folder / "flow", flux)
    export.write_vae(folder / "flow", autoencoder.taesd().requires_grad_(False))
    return folder


def test_its_folder_is_loaded_as_a_pipeline(embedded: Path) -> None:
    model, clip, vae = pipeline.load(embedded, [])
    assert vae.latent_channels == codec.CHANNELS
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle on white"))
    noise = normal(1, *network.LATENT)
    drawn = comfy.sample.sample(
        model, noise, 2, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(noise), disable_pbar=True
    )
    sampled = model.model.process_latent_in(drawn)
    text = Text(prompt[0][0], prompt[0][1]["pooled_output"])
    with torch.inference_mode():
        guidance = torch.tensor([3.5])
        x = noise
        for sigma, sigma_down in itertools.pairwise(simple_sigmas(2)):
            v = velocity(model.model.diffusion_model, x, torch.tensor([sigma]), text, guidance)
            x = x + (sigma_down - sigma) * v
    torch.testing.assert_close(sampled, x, rtol=1e-3, atol=1e-3)


def test_the_recipes_rates_bring_the_loss_down(tmp_path: Path) -> None:
    """Sixty updates, all within the warm-up, on four drawings: a fifth of the loss is gone."""
    drawings = [scene.draw(caption, random.Random(i)) for i, caption in enumerate(captions_of(1, 4, (1, 2)))]
    x = codec.encode(torch.stack([data.picture_tensor(drawing) for drawing in drawings]))
    text = Text(normal(4, 16, 64, seed=2), normal(4, 64, seed=3))
    schedule = train.Schedule(updates=60, decay=1, batch=4)
    run, losses = train.Run(network.flux(generator()), tmp_path, schedule, network.OUTER), []

    def loss(seeded: torch.Generator) -> torch.Tensor:
        losses.append(flow_matching_loss(run.model, x, text, seeded))
        return losses[-1]

    run.train(loss, seed=0)
    first, last = (torch.stack(part).mean().item() for part in (losses[:10], losses[-10:]))
    assert last < 0.8 * first, (first, last)


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    pictures = Pictures(
        normal(6, *network.LATENT).half(),
        torch.tensor([1, 2, 3, 1, 2, 3]),
        normal(4, 77, 64, seed=2).half(),
        normal(4, 64, seed=3).half(),
    )

    def weights_after(folder: Path, *stops: int) -> dict[str, torch.Tensor]:
        for updates in stops:
            schedule = train.Schedule(updates=updates, decay=1, batch=2)
            run = train.Run(network.flux(generator()), folder, schedule, network.OUTER)
            run.train(
                lambda seeded, run=run: flow_matching_loss(run.model, *pictures.batch(2, seeded), seeded),
                seed=0,
            )
        return {**run.model.state_dict(), **{f"ema.{k}": v for k, v in run.average.state_dict().items()}}

    interrupted, whole = weights_after(tmp_path / "a", 2, 4), weights_after(tmp_path / "b", 4)
    for key, value in whole.items():
        torch.testing.assert_close(interrupted[key], value, rtol=0, atol=1e-6, msg=key)


def test_the_student_that_is_shipped_gives_in_one_pass_what_cfg_gives_its_teacher_in_two(root: Path) -> None:
    """At g = 4, along the teacher's way, it is off less than half as far as the teacher without guidance."""
    teacher, clip, _ = LoadPipeline.execute("tiny/flow").result
    guided, _, _ = LoadPipeline.execute("tiny/flow/student").result
    assert takes_guidance(guided) and not takes_guidance(teacher)
    positive, negative = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text))
        for text in (str(captions_of(3, 1, (2,))[0]), "")
    )
    positive = node_helpers.conditioning_set_values(positive, {"guidance": 4.0})
    visited: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def walk(model, x, sigmas, extra_args, **kwargs):
        for sigma, sigma_down in itertools.pairwise(sigmas):
            denoised = model(x, sigma.expand(len(x)), **extra_args)
            visited.append((x, sigma, denoised))
            x = x + (sigma_down - sigma) * (x - denoised) / sigma
        return x

    errors: list[float] = []

    def compare(model, x, sigmas, extra_args, **kwargs):
        off = [model(x, s.expand(len(x)), **extra_args) - denoised for x, s, denoised in visited]
        errors.append(torch.stack(off).square().mean().sqrt().item())
        return x

    def run(model, cfg: float, function) -> None:
        noise = normal(4, *network.LATENT)
        comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            comfy.samplers.KSAMPLER(function),
            torch.tensor(simple_sigmas(8)),
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )

    run(teacher, 4.0, walk)
    run(guided, 1.0, compare)
    run(teacher, 1.0, compare)
    assert errors[0] < 0.5 * errors[1], errors


def test_the_student_of_the_recipe_is_written_in_half_precision(
    embedded: Path, root: Path, tmp_path: Path
) -> None:
    shutil.copyfile(root / "tiny" / "flow" / pipeline.MODEL, embedded / "flow" / pipeline.MODEL)
    plan, told = replace(student.PLAN, updates=2, batch=2, rank=2), []
    losses = student.make_student(
        embedded, tmp_path / "adapter.safetensors", lambda running, progress: told.append(1), plan, prompts=4
    )
    assert len(losses) == len(told) == 2
    assert {each.dtype for each in load_file(embedded / "flow" / pipeline.STUDENT).values()} == {torch.half}
    assert takes_guidance(pipeline.load(embedded, [], student=True).model)


def test_the_recipes_judge_reads_what_the_shipped_student_draws_of_each_caption(root: Path) -> None:
    judged, asked = student.Judge(pipeline.load(root / "tiny", [], student=True)), captions_of(1, 12, (1,))
    right = judged.score(asked, 2.0, seed=0)
    assert right >= 40, "71 of 100 captions of one object are shown by its teacher"
    drawn = judged.draw(asked, 2.0, noise_of(0, range(12)))
    assert accuracy([*asked[1:], asked[0]], drawn) < right, "each picture shows its own caption"
