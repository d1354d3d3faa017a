# SPDX-License-Identifier: GPL-3.0-or-later
"""A GUIDER as the teacher: what it answers where it samples is learned, by one pass of the student."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DualCFGGuider,
    DualModelGuider,
)
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dizzydiff import nodes
from dizzydiff.nodes.distill import DistillGuidance
from dizzydiff.nodes.distill_guider import remarks
from dizzydiff.students.distill import objective, run
from dizzydiff.students.distill.errors import (
    OtherGuiderModel,
    OtherTraining,
    UnknownDial,
    UnsupportedGuider,
)
from dizzydiff.students.distill.guider import TeacherGuider, conditionings, dials_in, signals_of
from dizzydiff.students.distill.guider_answers import known_answers
from dizzydiff.students.distill.guider_visits import GuiderVisits
from dizzydiff.students.distill.job import Job
from dizzydiff.students.distill.plan import Plan
from dizzydiff.students.distill.run import distill
from dizzydiff.students.distill.teacher import trainable
from dizzydiff.students.distill.trainable import AdapterShape, TrainableStudent
from dizzydiff.students.errors import NoUnconditional
from dizzydiff.students.guidance import distilled_guidance
from dizzydiff.students.loader import Source, load_unet
from dizzydiff.students.student_model import student_of

from .networks import save_pipeline
from .test_distill import PROMPTS, Interrupted, denoised, encode, on_teacher
from .test_distill_quantised import flux

ENCODE = encode(64)
PLAN = Plan(updates=3, scales=(1.0, 6.0), batch=2, rank=2)
SIGMAS = torch.tensor([0.9, 0.6, 0.3])


class Perturbed(comfy.samplers.CFGGuider):
    """Of another pack: CFG, and a third pass with attention off, by a scale of its own."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.stg_scale, self.rescale = 1.0, 0.0

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None
    ) -> Tensor:
        options = comfy.model_patcher.set_model_options_patch_replace(
            model_options.copy(), lambda q, k, v, extra, **others: v, "attn1", "middle", 0
        )
        positive, negative = self.conds["positive"], self.conds["negative"]
        ask = comfy.samplers.calc_cond_batch
        cond, uncond = ask(self.inner_model, [positive, negative], x, timestep, model_options)
        (weak,) = ask(self.inner_model, [positive], x, timestep, options)
        out = uncond + self.cfg * (cond - uncond) + self.stg_scale * 3 * (cond - weak)
        return out * (1 + self.rescale * (cond.std() / out.std() - 1))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_pipeline(tmp_path_factory.mktemp("guider"))
    return load_unet(Source(folder / "teacher", "teacher"))


@pytest.fixture
def job(teacher: Any, tmp_path: Path) -> Job:
    return Job(
        teacher=teacher,
        teacher_name="teacher",
        prompts=PROMPTS,
        encode=ENCODE,
        shape=(4, 8, 8),
        plan=PLAN,
        path=tmp_path / "student.safetensors",
        checkpointing=False,
    )


def cfg(model: Any, scale: float = 3.0, negative: str = "") -> Any:
    return CFGGuider.execute(model, ENCODE("its own"), ENCODE(negative), scale).args[0]


def dual(model: Any, style: str = "regular") -> Any:
    conds = [ENCODE(text) for text in ("its own", "middle", "")]
    return DualCFGGuider.execute(model, *conds, 2.0, 3.0, style).args[0]


def perturbed(model: Any, **numbers: float) -> Perturbed:
    guider = Perturbed(model)
    guider.set_conds(ENCODE("its own"), ENCODE(""))
    vars(guider).update(numbers)
    return guider


def visits_of(job: Job, guided: TeacherGuider) -> GuiderVisits:
    prompts = conditionings(guided, job.prompts, job.encode, "", job.teacher)
    guidance = distilled_guidance(job.plan.scales, signals_of(guided))
    student = TrainableStudent(trainable(job.teacher), prompts, job.shape, AdapterShape(guidance, 2, 0))
    return GuiderVisits(guided, student, list(prompts.positive), seed=0)


def answers(job: Job, guided: TeacherGuider, prompt: int, *g: float) -> Tensor:
    """D at the states of ``states``, from the teacher in training."""
    out: list[Tensor] = []

    def walk(denoise: Any) -> None:
        out.extend(denoise(x, sigma[None]) for x, sigma in zip(states(), SIGMAS, strict=True))

    visits_of(job, guided)(walk, torch.cat([SIGMAS, torch.zeros(1)]), prompt, torch.tensor(g))
    return torch.cat(out)


def states() -> list[Tensor]:
    noise = torch.randn(len(SIGMAS), 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return [sigma * each for sigma, each in zip(SIGMAS, noise, strict=True)]


def sampled(model: Any, text: str, scale: float, negative: str = "") -> Tensor:
    """What core's own sampling with CFG answers at the same states."""
    out: list[Tensor] = []

    def ask(model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: bool) -> Tensor:
        out.extend(model(x, sigma[None], **extra_args) for x, sigma in zip(states(), SIGMAS, strict=True))
        return x

    noise = torch.zeros(1, 4, 8, 8)
    comfy.sample.sample_custom(
        model,
        noise,
        scale,
        comfy.samplers.KSAMPLER(ask),
        torch.cat([SIGMAS, torch.zeros(1)]),
        ENCODE(text),
        ENCODE(negative),
        noise,
        disable_pbar=True,
    )
    return torch.cat(out)


def test_a_plain_guider_gives_the_student_of_plain_cfg_bit_for_bit(job: Job, tmp_path: Path) -> None:
    plain = distill(dataclasses.replace(job, path=tmp_path / "plain.safetensors"))
    guided = distill(dataclasses.replace(job, guider=TeacherGuider(cfg(job.teacher))))
    assert guided.losses == plain.losses
    assert torch.equal(guided.adapter.projection, plain.adapter.projection)
    assert all(torch.equal(each, guided.adapter.lora[key]) for key, each in plain.adapter.lora.items())


def test_the_guided_teacher_is_plain_cfg_to_rounding(job: Job) -> None:
    """Through the guider's own sampling, and by the two predictions that the plain teacher gives."""
    guided = TeacherGuider(cfg(job.teacher, negative="blurry"))
    pair = visits_of(job, guided).student.teacher(torch.cat(states()), SIGMAS, torch.tensor([1, 1, 1]))
    expected = objective.guided(*pair, torch.full((3,), 4.0))
    torch.testing.assert_close(answers(job, guided, 1, 5.0), expected, rtol=1e-4, atol=1e-5)


PATCHES = {
    "none": lambda model: model,
    "RescaleCFG": lambda model: RescaleCFG().patch(model, 0.7)[0],
    "PAG": lambda model: PerturbedAttentionGuidance.execute(model, 2.0).args[0],
    "APG with momentum": lambda model: APG.execute(model, 0.5, 2.0, -0.5).args[0],
}


@pytest.mark.parametrize("patch", PATCHES)
def test_the_teacher_answers_as_core_samples_the_patched_model(job: Job, patch: str) -> None:
    patched = PATCHES[patch](job.teacher)
    guided = answers(job, TeacherGuider(cfg(patched)), 2, 5.0)
    torch.testing.assert_close(guided, sampled(PATCHES[patch](job.teacher), PROMPTS[2], 5.0))
    if patch != "none":
        plain = sampled(job.teacher, PROMPTS[2], 5.0)
        assert (guided - plain).norm() > 1e-2 * plain.norm(), "the patch counts"


def test_layers_are_skipped_as_core_skips_them(job: Job) -> None:
    """Core's skip-layer guidance, a pass of its own on transformers."""
    model = flux(None, quantised=False, context_in_dim=64)

    def patched() -> Any:
        return SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "0", "0").args[0]

    guided = answers(dataclasses.replace(job, teacher=model), TeacherGuider(cfg(patched())), 1, 4.0)
    torch.testing.assert_close(guided, sampled(patched(), PROMPTS[1], 4.0))
    assert (guided - sampled(model, PROMPTS[1], 4.0)).abs().max() > 1e-2


def test_the_node_hands_on_guider_and_dials(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(nodes.distill, "trained", lambda job, students: (jobs.append(job), None))
    latent, guider = {"samples": torch.zeros(1, 4, 8, 8)}, dual(teacher)
    settings = {"updates": 1, "g_min": 1.0, "g_max": 4.0, "student_steps": "any", "seed": 0}
    for changes in ({}, {"guider": guider, "dials": "cfg1, cfg2"}):
        DistillGuidance.execute(teacher, None, "red", latent, "guided", **settings, **changes)
    assert jobs[0].guider is None and jobs[1].guider == TeacherGuider(guider, ("cfg1", "cfg2"))
    inputs = [each.id for each in DistillGuidance.define_schema().inputs]
    assert inputs.index("guider") > inputs.index("sigmas"), "old workflows give their values by place"


def test_a_guider_of_two_scales_gets_both_of_them(job: Job) -> None:
    """Core's Dual CFG: D(neg) + cfg2 (D(middle) - D(neg)) + cfg1 (D(c) - D(middle))."""
    guided = answers(job, TeacherGuider(dual(job.teacher), ("cfg1", "cfg2")), 0, 5.0, 1.5)
    positive, middle, negative = (sampled(job.teacher, text, 1.0) for text in (PROMPTS[0], "middle", ""))
    expected = negative + 1.5 * (middle - negative) + 5.0 * (positive - middle)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)


def test_a_guider_of_two_models_prepares_its_second_one(job: Job) -> None:
    other = PerturbedAttentionGuidance.execute(job.teacher, 0.0).args[0]
    guider = DualModelGuider.execute(job.teacher, ENCODE("x"), 4.0, other, ENCODE("blurry")).args[0]
    guided = answers(job, TeacherGuider(guider), 0, 5.0)
    torch.testing.assert_close(guided, sampled(job.teacher, PROMPTS[0], 5.0, "blurry"), rtol=1e-4, atol=1e-4)


def test_the_student_of_two_scales_is_saved_loaded_and_dialled(job: Job) -> None:
    job = dataclasses.replace(
        job,
        plan=dataclasses.replace(PLAN, rate=0.1, steps=2, first_steps=4, step_updates=1),
        guider=TeacherGuider(perturbed(job.teacher), ("cfg", "stg_scale")),
    )
    result = distill(job)
    with safe_open(job.path, "pt") as file:
        plan = json.loads(file.metadata()["plan"])
    assert plan["guider"] == {
        "class": "Perturbed",
        "dials": ["cfg", "stg_scale"],
        "numbers": {"rescale": 0.0},
    }
    assert result.adapter.projection.shape[1] == 1024
    student, red = on_teacher(job.path, job.teacher), ENCODE("red")
    usual = denoised(student, red, 2.0, guidance=3.0, guidance_2=3.0)
    assert torch.equal(usual, denoised(student, red, 2.0, guidance=3.0))
    for g in ({"guidance": 6.0, "guidance_2": 3.0}, {"guidance": 3.0, "guidance_2": 6.0}):
        assert (denoised(student, red, 2.0, **g) - usual).norm() > 1e-4 * usual.norm()


def test_an_interrupted_training_by_a_guider_goes_on_to_the_very_same_student(
    job: Job, tmp_path: Path
) -> None:
    """Also where a patch remembers the predictions of a trajectory."""
    guided = TeacherGuider(cfg(PATCHES["APG with momentum"](job.teacher)))
    job = dataclasses.replace(job, guider=guided)

    def interrupt(running: run.Running, progress: Any) -> None:
        if len(progress.losses) == 2:
            raise Interrupted

    whole = distill(dataclasses.replace(job, path=tmp_path / "whole.safetensors"))
    with pytest.raises(Interrupted):
        distill(job, interrupt)
    resumed = distill(job)
    assert resumed.losses == whole.losses
    assert all(torch.equal(each, resumed.adapter.lora[key]) for key, each in whole.adapter.lora.items())


def test_another_patch_of_the_guiders_model_is_another_training(job: Job) -> None:
    """Its numbers lie in a closure: it is known by what it answers."""
    guiders = [
        TeacherGuider(cfg(PerturbedAttentionGuidance.execute(job.teacher, scale).args[0]))
        for scale in (2.0, 2.5)
    ]
    distill(dataclasses.replace(job, guider=guiders[0]))
    with pytest.raises(OtherTraining, match="a patch of its model"):
        distill(dataclasses.replace(job, guider=guiders[1]))


def test_another_guider_is_another_training(job: Job) -> None:
    """Whether it is another class, number, name of a dial, or negative prompt."""
    model = job.teacher
    guided = dataclasses.replace(job, guider=TeacherGuider(perturbed(model)))
    distill(guided)
    assert len(distill(guided).losses) == PLAN.updates
    for other in (
        TeacherGuider(perturbed(model, rescale=0.1)),
        TeacherGuider(perturbed(model), ("stg_scale",)),
        TeacherGuider(cfg(model)),
        None,
    ):
        with pytest.raises(OtherTraining, match="another output name"):
            distill(dataclasses.replace(job, guider=other))
    elsewhere = perturbed(model)
    elsewhere.set_conds(ENCODE("its own"), ENCODE("blurry"))
    with pytest.raises(OtherTraining, match="negative condition"):
        distill(dataclasses.replace(job, guider=TeacherGuider(elsewhere)))
    used = perturbed(model, cfg=7.0)
    assert len(distill(dataclasses.replace(job, guider=TeacherGuider(used))).losses) == PLAN.updates, (
        "what stands at a dial is no setting"
    )


def test_a_file_from_before_there_were_guiders_goes_on(job: Job) -> None:
    distill(job)
    with safe_open(job.path, "pt") as file:
        metadata = file.metadata()
    plan = json.loads(metadata["plan"])
    assert plan.pop("guider") is None
    save_file(load_file(job.path), job.path, {**metadata, "plan": json.dumps(plan)})
    assert len(distill(job).losses) == PLAN.updates


def test_prompts_take_the_place_of_the_guiders_positive_one_and_keep_its_options(teacher: Any) -> None:
    image, mask = torch.ones(1, 4, 8, 8), torch.ones(1, 8, 8)
    positive = [[ENCODE("x")[0][0], {"reference_latents": [image], "mask": mask, "strength": 0.5}]]
    guider = CFGGuider.execute(teacher, positive, ENCODE(""), 3.0).args[0]
    ((text, options),) = TeacherGuider(guider).conditioning(ENCODE("red"))
    assert torch.equal(text, ENCODE("red")[0][0])
    assert options["reference_latents"] == [image] and options.keys() == {
        "reference_latents",
        "pooled_output",
    }


def test_a_guider_without_a_dial_is_learned_as_it_is(job: Job) -> None:
    """Core's Basic Guider, on a model whose patch guides."""
    basic = BasicGuider.execute(PATCHES["PAG"](job.teacher), ENCODE("x")).args[0]
    assert len(distill(dataclasses.replace(job, guider=TeacherGuider(basic, ()))).losses) == PLAN.updates


def test_a_guider_and_the_model_may_be_patched_in_other_ways(job: Job) -> None:
    """Object patches of the guider's MODEL count for the teacher alone, and are off after it was asked."""
    patched = job.teacher.clone()
    scaled = patched.get_model_object("model_sampling")
    half = type(scaled)(job.teacher.model.model_config)
    half.set_sigmas(scaled.sigmas * 0.5)
    patched.add_object_patch("model_sampling", half)
    before = denoised(job.teacher, ENCODE("red"), 2.0)
    other = sampled(patched, PROMPTS[0], 5.0)
    torch.testing.assert_close(answers(job, TeacherGuider(cfg(patched)), 0, 5.0), other)
    assert torch.equal(denoised(job.teacher, ENCODE("red"), 2.0), before)
    assert job.teacher.get_model_object("model_sampling") is scaled


def test_the_users_guider_stays_as_it_was(job: Job) -> None:
    guider = perturbed(job.teacher)
    before = {**vars(guider)}
    answers(job, TeacherGuider(guider), 0, 5.0)
    assert vars(guider) == before


class Broken(comfy.samplers.CFGGuider):
    """Answers what its number says."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Any:
        if self.cfg_of == "shape":
            return x[:, :2]
        if self.cfg_of == "NaN":
            return x * torch.nan
        if self.cfg_of == "same":
            return x
        if self.cfg_of == "grows":
            return x * self.cfg
        raise KeyError("a key of mine")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("shape", r"\[1, 4, 8, 8\] with \[1, 2, 8, 8\]"),
        ("NaN", "NaN or infinity at sigma"),
        ("raises", "KeyError: 'a key of mine'"),
    ],
)
def test_a_guider_that_is_no_teacher_is_refused_before_the_training(job: Job, kind: str, said: str) -> None:
    guider = Broken(job.teacher)
    guider.set_conds(ENCODE("x"), ENCODE(""))
    guider.cfg_of = kind
    with pytest.raises(UnsupportedGuider, match=said):
        distill(dataclasses.replace(job, guider=TeacherGuider(guider)))
    assert not job.path.exists()


def test_what_cannot_be_learned_of_a_guider_is_said(job: Job) -> None:
    model = job.teacher
    with pytest.raises(UnknownDial, match=r"no number called 'scale'.*cfg \(3\)"):
        TeacherGuider(cfg(model), ("scale",))
    with pytest.raises(UnknownDial, match="at most 2"):
        dials_in("cfg, cfg1, cfg2")
    assert dials_in(" cfg1,cfg2 ") == ("cfg1", "cfg2") and dials_in("") == ()
    assert "at most 2" in str(DistillGuidance.validate_inputs(dials="a b c"))
    with pytest.raises(UnsupportedGuider, match="has no sample"):
        TeacherGuider(object())
    with pytest.raises(NoUnconditional, match="no negative condition that cfg could weigh"):
        TeacherGuider(BasicGuider.execute(model, ENCODE("x")).args[0])
    growing = Broken(model)
    growing.set_conds(ENCODE("x"), ENCODE(""))
    growing.cfg_of = "grows"
    with pytest.raises(NoUnconditional, match="no negative condition to weigh"):
        distill(dataclasses.replace(job, guider=TeacherGuider(growing)))
    still = Broken(model)
    still.set_conds(ENCODE("x"), ENCODE(""))
    still.cfg_of = "same"
    with pytest.raises(NoUnconditional, match="the same at cfg = 1 and 6"):
        distill(dataclasses.replace(job, guider=TeacherGuider(still)))
    with pytest.raises(NoUnconditional, match="the same with each of the prompts"):
        distill(dataclasses.replace(job, guider=TeacherGuider(still, ())))
    lora = model.clone()
    lora.add_patches({"diffusion_model.out.2.weight": (torch.ones(4, 64, 3, 3),)})
    with pytest.raises(OtherGuiderModel, match="other LoRAs"):
        distill(dataclasses.replace(job, guider=TeacherGuider(cfg(lora))))


def test_what_is_not_learned_or_counts_twice_is_said(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    rescaled = PATCHES["RescaleCFG"](job.teacher)
    guider = cfg(rescaled)
    assert "sampler_cfg_function), and CFG alone" in remarks(rescaled, "", None, "cfg")[0]
    assert "dials are not used" in remarks(job.teacher, "", None, "cfg1, cfg2")[0]
    assert "negative prompt is not used" in remarks(job.teacher, "blurry", guider, "cfg")[0]
    assert "count once more" in remarks(rescaled, "", guider, "cfg")[0]
    assert not remarks(job.teacher, "", None, "cfg") and not remarks(job.teacher, "", guider, "cfg")
    result = distill(dataclasses.replace(job, guider=TeacherGuider(cfg(rescaled))))
    student_of(job.teacher, result.adapter, "student")
    assert "count once more" not in caplog.text
    student_of(rescaled, result.adapter, "student")
    assert "count once more" in caplog.text


def test_a_guider_that_draws_at_random_is_told_of(job: Job) -> None:
    class Chance(comfy.samplers.CFGGuider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any, seed: Any) -> Any:
            D = super().predict_noise(x, timestep, model_options, seed)
            return D + 0.01 * torch.randn(D.shape)

    guider, said = Chance(job.teacher), list[str]()
    guider.set_conds(ENCODE("x"), ENCODE(""))
    visits = visits_of(job, TeacherGuider(guider))
    known_answers(visits, visits.student.distribution((1.0, 6.0)), None, "student", said.append)
    assert len(said) == 1 and "when it is asked again" in said[0]
