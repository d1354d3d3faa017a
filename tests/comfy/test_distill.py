# SPDX-License-Identifier: GPL-3.0-or-later
"""Distilling a MODEL: the adapter starts as the teacher, is trained alone, is saved whole, and comes back as
a native MODEL.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import pytest
import torch
from comfy.model_base import BaseModel
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from dizzydiff.common import files as common_files
from dizzydiff.common.fingerprint import fingerprint
from dizzydiff.nodes.distill import student_path, trained
from dizzydiff.nodes.students import LoadStudent
from dizzydiff.stability.identity import identity
from dizzydiff.students import files, student_model
from dizzydiff.students.adapter import CENTRES, MANIFEST_FORMAT, Adapter, Manifest, read
from dizzydiff.students.distill import objective, run, saving, several
from dizzydiff.students.distill.errors import (
    BadPlan,
    CannotSave,
    Diverged,
    NoPrompts,
    NotEnoughMemory,
    OtherTraining,
)
from dizzydiff.students.distill.job import Job
from dizzydiff.students.distill.merged import write_folder
from dizzydiff.students.distill.plan import Plan
from dizzydiff.students.distill.run import distill
from dizzydiff.students.distill.teacher import diffusers_names, trainable
from dizzydiff.students.distill.trainable import AdapterShape, Prompts, TrainableStudent
from dizzydiff.students.errors import DamagedFile, MissingFile, NeedsTeacher, NoUnconditional, WrongTeacher
from dizzydiff.students.guidance import distilled_guidance
from dizzydiff.students.loader import Source, load_student, load_unet
from dizzydiff.students.recipe import description
from dizzydiff.students.student_model import (
    nearest,
    prompt_embedding,
    student_of,
    students_of,
)

from .networks import save_file_student, save_pipeline, unet

PLAN = Plan(updates=6, scales=(1.0, 8.0), batch=2, rank=2, steps=2, first_steps=4, step_updates=3)
PROMPTS = ["red", "green", "blue"]


class Interrupted(Exception):
    pass


def encode(width: int, pooled: int = 8) -> Any:
    """Texts as random CONDITIONING, the same for the same text."""

    def conditioning(text: str) -> list:
        generator = torch.Generator().manual_seed(sum(text.encode()))
        return [
            [
                4 * torch.randn(1, 7, width, generator=generator),
                {"pooled_output": torch.randn(1, pooled, generator=generator)},
            ]
        ]

    return conditioning


def flux() -> Any:
    """Core's Flux without a guidance input, small, with random weights."""
    config = {
        "image_model": "flux",
        "in_channels": 4,
        "out_channels": 4,
        "vec_in_dim": 8,
        "context_in_dim": 16,
        "hidden_size": 48,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [8, 8, 8],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": False,
        "txt_ids_dims": [],
    }
    torch.manual_seed(0)
    model_config = comfy.supported_models.FluxSchnell(config)
    model_config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.Flux(model_config, device=torch.device("cpu"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("distill"))


@pytest.fixture
def job(folder: Path, tmp_path: Path) -> Job:
    return Job(
        teacher=load_unet(Source(folder / "teacher", "teacher")),
        teacher_name="teacher",
        prompts=PROMPTS,
        encode=encode(64),
        shape=(4, 8, 8),
        plan=PLAN,
        path=tmp_path / "student.safetensors",
        checkpointing=False,
    )


def teacher_of(kind: str, tmp_path: Path) -> tuple[Any, Any]:
    """(MODEL, encode) of a kind of teacher."""
    if kind == "flux":
        return flux(), encode(16)
    if kind == "sdxl":
        return load_unet(
            Source(save_file_student(unet("sdxl", None), tmp_path / "sdxl.safetensors"), kind)
        ), encode(48, 1280)
    return load_unet(Source(save_pipeline(tmp_path / kind, scheduler=kind) / "teacher", kind)), encode(64)


def on_teacher(path: Path, teacher: Any, in_memory: int = 4) -> Any:
    return student_model.load_student(Source(path, path.name), teacher, in_memory)


def denoised(model: Any, conditioning: list, sigma: float, **values: Any) -> torch.Tensor:
    """One prediction through core's sampling, at CFG 1."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    positive = [[conditioning[0][0], {**conditioning[0][1], **values}]]
    answer: list[torch.Tensor] = []

    def ask(
        inner: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, callback: Any, disable: bool
    ) -> torch.Tensor:
        answer.append(inner(noise * sigma, sigma * torch.ones(2), **extra_args))
        return x

    comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        comfy.samplers.KSAMPLER(ask),
        torch.tensor([sigma, 0.0]),
        positive,
        positive,
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    return answer[0]


@pytest.mark.parametrize("kind", ["v", "eps", "sdxl", "flux"])
def test_every_kind_of_teacher_is_its_student_at_first_and_the_gradient_leads_to_the_guided_teacher(
    kind: str, tmp_path: Path
) -> None:
    teacher, encoder = teacher_of(kind, tmp_path)
    distilled = TrainableStudent(
        trainable(teacher),
        Prompts(map(encoder, PROMPTS), encoder("")),
        (4, 8, 8),
        AdapterShape(distilled_guidance((1.0, 8.0)), rank=2, seed=0),
    )
    distribution = distilled.distribution((1.0, 8.0))
    x, sigma = (
        torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.full((3,), distribution.level(0.5)),
    )
    prompt, g = torch.arange(3), torch.tensor([1.0, 4.0, 8.0])
    conditional, unconditional = distilled.teacher(x, sigma, prompt)
    target = objective.guided(conditional, unconditional, g - 1)

    def loss() -> torch.Tensor:
        return objective.loss(distilled.student(x, sigma, prompt, g), target, sigma, g - 1, distribution.flow)

    with torch.no_grad():
        torch.testing.assert_close(distilled.student(x, sigma, prompt, g), conditional, rtol=1e-5, atol=1e-5)
    gradients = {}
    for checkpointing in (False, True) if kind == "v" else (False,):
        with distilled.training(checkpointing):
            before = loss()
            before.backward()
        gradients[checkpointing] = {
            name: p.grad.clone() for name, p in distilled.parameters.items() if p.grad is not None
        }
        for parameter in distilled.parameters.values():
            parameter.grad = None
    for name, gradient in gradients.get(True, {}).items():
        torch.testing.assert_close(gradient, gradients[False][name], rtol=1e-3, atol=1e-5)
    slope = sum(float(gradient.square().sum()) for gradient in gradients[False].values())
    step = 0.01 * before.item() / slope
    with torch.no_grad():
        for name, gradient in gradients[False].items():
            distilled.parameters[name].sub_(step * gradient)
        assert 0.5 < (before.item() - loss().item()) / (step * slope) < 1.5, (
            "the loss falls as fast as its gradient says"
        )


@pytest.mark.parametrize("kind", ["eps", "flux"])
def test_a_student_is_a_native_model_with_a_guidance_for_each_row(kind: str, tmp_path: Path) -> None:
    teacher, encoder = teacher_of(kind, tmp_path)
    plan = dataclasses.replace(PLAN, updates=3, steps=0, rate=0.1)
    result = distill(
        Job(
            teacher=teacher,
            teacher_name=kind,
            prompts=PROMPTS,
            encode=encoder,
            shape=(4, 8, 8),
            plan=plan,
            path=tmp_path / "s.safetensors",
            checkpointing=False,
        )
    )
    student = student_of(teacher, result.adapter, kind)
    answers = {g: denoised(student, encoder("red"), 0.7, guidance=g) for g in (1.0, 8.0)}
    assert (answers[8.0] - answers[1.0]).abs().max() > 1e-3 * answers[1.0].abs().max()
    both = denoised(student, encoder("red"), 0.7, guidance=[1.0, 8.0])
    torch.testing.assert_close(both, torch.cat([answers[1.0][:1], answers[8.0][1:]]), rtol=1e-4, atol=1e-4)


def test_the_file_gives_the_student_that_was_trained(job: Job) -> None:
    """Core's merged LoRA patches answer as the bypass layers of the training did."""
    seen: dict[float, torch.Tensor] = {}
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))

    def look(running: run.Running, progress: Any) -> None:
        if len(progress.losses) == running.training.total:
            with torch.no_grad():
                seen[5.0] = running.student.student(
                    noise * 2.0, torch.full((2,), 2.0), torch.zeros(2).long(), torch.full((2,), 5.0)
                )

    distill(job, look)
    student = on_teacher(job.path, job.teacher)
    torch.testing.assert_close(
        denoised(student, encode(64)("red"), 2.0, guidance=5.0), seen[5.0], rtol=1e-4, atol=1e-4
    )
    teacher = denoised(job.teacher, encode(64)("red"), 2.0)
    assert (teacher - seen[5.0]).abs().max() > 1e-3, "the student is not its teacher"


@pytest.mark.parametrize("stop_after", [2, 8])
def test_an_interrupted_training_goes_on_to_the_very_same_student(
    job: Job, tmp_path: Path, stop_after: int
) -> None:
    def interrupt(running: run.Running, progress: Any) -> None:
        if len(progress.losses) == stop_after:
            raise Interrupted

    whole = distill(dataclasses.replace(job, path=tmp_path / "whole.safetensors"))
    with pytest.raises(Interrupted):
        distill(job, interrupt)
    resumed = distill(job)
    assert resumed.losses == whole.losses
    for key, value in whole.adapter.lora.items():
        assert torch.equal(resumed.adapter.lora[key], value), key
    assert torch.equal(resumed.adapter.projection, whole.adapter.projection)


def test_a_finished_file_is_not_trained_again_and_tells_its_origin(job: Job) -> None:
    distill(job)

    def never(running: run.Running, progress: Any) -> None:
        raise AssertionError("trained")

    settings = distill(job, never).adapter.settings
    assert settings["teacher"] == fingerprint(job.teacher)
    assert (settings["guidance_scale_range"], settings["plan"]["seed"], settings["plan"]["steps"]) == (
        [1.0, 8.0],
        0,
        2,
    )
    assert not [
        key for key in files.read_weights((job.path,))[0] if key.startswith(("optimiser", "previous"))
    ]


def test_pictures_can_be_learned_from_and_noise_levels_passed_in(job: Job) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
    result = distill(dataclasses.replace(job, latents=latents, stage_two_sigmas=sigmas, checkpointing=True))
    assert len(result.losses) == 6 + 2 * 3 and result.stage_ends == [6, 9]


def test_another_training_of_the_same_name_is_refused(job: Job) -> None:
    distill(job)
    for change, told in (
        ({"prompts": ["others"]}, r"prompts \(3 there, 1 here\)"),
        ({"plan": dataclasses.replace(PLAN, seed=1)}, r"another seed \(0 there, 1 here\)\."),
    ):
        with pytest.raises(OtherTraining, match=told + ".*another output name"):
            distill(dataclasses.replace(job, **change))


def test_a_full_disk_leaves_the_file_that_was_there(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(running: run.Running, progress: Any) -> None:
        if len(progress.losses) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        distill(job, stop)
    before = job.path.read_bytes()

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(common_files, "save_file", full)
    with pytest.raises(CannotSave, match="No space left"):
        distill(job)
    assert job.path.read_bytes() == before
    assert [path.name for path in job.path.parent.iterdir()] == [job.path.name]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = TrainableStudent.student
    calls = iter(range(100))

    def broken(self: Any, *arguments: Any) -> torch.Tensor:
        return asked(self, *arguments) * (torch.nan if next(calls) == 6 else 1.0)

    monkeypatch.setattr(TrainableStudent, "student", broken)
    with pytest.raises(Diverged, match="update 5 of stage 'guidance'"):
        distill(job)
    monkeypatch.undo()
    assert len(distill(job).losses) == 12


def test_what_cannot_be_distilled_is_said_before_it_starts(
    job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoPrompts, match="one prompt a line"):
        distill(dataclasses.replace(job, prompts=[]))
    with pytest.raises(BadPlan, match="from 8 to 1"):
        Plan(scales=(8.0, 1.0))
    with pytest.raises(BadPlan, match="from 6 steps to 4"):
        Plan(steps=4, first_steps=6)
    with pytest.raises(NoUnconditional, match="is a student"):
        distill(dataclasses.replace(job, teacher=load_student(Source(folder / "unet", "student"))))
    with pytest.raises(NoUnconditional, match="there is no guidance to learn"):
        distill(dataclasses.replace(job, encode=lambda text: encode(64)("the same")))
    monkeypatch.setattr(
        comfy.model_management,
        "get_free_memory",
        lambda device, both=False: (2**20, 2**20) if both else 2**20,
    )
    with pytest.raises(NotEnoughMemory, match="GiB"):
        distill(job)
    assert not job.path.exists()


def test_an_adapter_asks_for_its_teacher_and_refuses_another_kind(job: Job, tmp_path: Path) -> None:
    distill(job)
    with pytest.raises(NeedsTeacher, match="distilled from teacher"):
        load_student(Source(job.path, "student"))
    other = load_unet(Source(save_file_student(unet("sd15", None), tmp_path / "other.safetensors"), "other"))
    with pytest.raises(WrongTeacher, match="of another kind"):
        on_teacher(job.path, other)
    student = on_teacher(job.path, job.teacher)
    assert isinstance(student.model, BaseModel) and "teacher" in [
        each.id for each in LoadStudent.define_schema().inputs
    ]


def test_the_merged_folder_is_the_same_student_in_diffusers(job: Job, folder: Path, tmp_path: Path) -> None:
    """UNet2DConditionModel loads it, and its pipeline's own embedding of w gives what the native student
    gives.
    """
    result = distill(job)
    write_folder(tmp_path / "merged", folder / "teacher", result.adapter, diffusers_names(job.teacher))
    network = UNet2DConditionModel.from_pretrained(tmp_path / "merged" / "unet")
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "merged" / "scheduler")
    t, g = 600, 5.0
    alpha = scheduler.alphas_cumprod[t]
    sigma = float(((1 - alpha) / alpha).sqrt())
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    z = noise * sigma * alpha.sqrt()
    embedding = StableDiffusionPipeline.get_guidance_scale_embedding(None, torch.tensor([g - 1.0] * 2), 256)
    context = encode(64)("red")[0][0].expand(2, -1, -1)
    with torch.no_grad():
        v = network(z, t, context, timestep_cond=embedding).sample
    student = student_of(job.teacher, result.adapter, "student")
    torch.testing.assert_close(
        denoised(student, encode(64)("red"), sigma, guidance=g),
        alpha.sqrt() * z - (1 - alpha).sqrt() * v,
        rtol=1e-3,
        atol=1e-3,
    )


def trained_several(job: Job, count: int = 2) -> Manifest:
    manifest, results = several.distill_several(
        dataclasses.replace(job, plan=Plan(updates=3, batch=2, rank=2)), count
    )
    assert len(results) == len(manifest.files) == count
    return manifest


def test_every_row_of_a_batch_is_answered_by_the_student_of_its_prompt(job: Job) -> None:
    manifest = trained_several(job)
    together = on_teacher(job.path, job.teacher, in_memory=1)
    apart = [on_teacher(job.path.with_name(name), job.teacher) for name in manifest.files]
    contexts = [job.encode(prompt)[0][0] for prompt in PROMPTS]
    owners = nearest(
        torch.cat([prompt_embedding(context) for context in contexts]), manifest.centres
    ).tolist()
    assert set(owners) == {0, 1}
    other = owners.index(1 - owners[0])
    mixed = denoised(together, [[torch.cat([contexts[0], contexts[other]]), {}]], 2.0, guidance=[3.0, 6.0])
    for row, (prompt, g) in enumerate([(0, 3.0), (other, 6.0)]):
        own = denoised(apart[owners[prompt]], [[contexts[prompt], {}]], 2.0, guidance=g)
        wrong = denoised(apart[1 - owners[prompt]], [[contexts[prompt], {}]], 2.0, guidance=g)
        torch.testing.assert_close(mixed[row], own[row], rtol=1e-4, atol=1e-5)
        assert (wrong[row] - own[row]).abs().max() > 1e-3


def test_students_are_read_when_they_are_needed_and_only_so_many_are_held(job: Job) -> None:
    manifest = trained_several(job)
    asked: list[int] = []

    class Counted(Manifest):
        def adapter(self, number: int) -> Adapter:
            asked.append(number)
            return super().adapter(number)

    contexts = [job.encode(prompt)[0][0] for prompt in PROMPTS]
    owners = nearest(
        torch.cat([prompt_embedding(context) for context in contexts]), manifest.centres
    ).tolist()
    one, two = (contexts[owners.index(number)] for number in (0, 1))
    roomy, narrow = (
        students_of(job.teacher, Counted(**vars(manifest)), "students", in_memory) for in_memory in (2, 1)
    )
    for model, expected in ((roomy, [0, 1]), (narrow, [0, 1, 0, 1])):
        asked.clear()
        for context in (one, two, one, two):
            denoised(model, [[context, {}]], 2.0)
        assert asked == expected


def test_a_profile_of_the_teacher_is_none_of_its_students(job: Job) -> None:
    trained_several(job)
    students = on_teacher(job.path, job.teacher)
    assert identity(students) == identity(on_teacher(job.path, job.teacher)) != identity(job.teacher)


def test_several_students_leave_the_teacher_as_it_was(job: Job) -> None:
    before = denoised(job.teacher, job.encode("red"), 2.0)
    trained_several(job)
    denoised(on_teacher(job.path, job.teacher), job.encode("red"), 2.0)
    assert torch.equal(denoised(job.teacher, job.encode("red"), 2.0), before)


def test_an_interrupted_training_of_several_goes_on_where_it_was(job: Job, tmp_path: Path) -> None:
    plan = Plan(updates=3, batch=2, rank=2)
    whole = trained_several(dataclasses.replace(job, path=tmp_path / "whole" / "student.safetensors"))
    job = dataclasses.replace(job, plan=plan)

    def interrupt(running: run.Running, progress: Any) -> None:
        assert running.total == 6
        if running.done == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        several.distill_several(job, 2, interrupt)
    assert not job.path.exists()
    manifest, _ = several.distill_several(job, 2)
    for name in manifest.files:
        one, other = (read(folder / name, name) for folder in (tmp_path, tmp_path / "whole"))
        assert all(torch.equal(value, other.lora[key]) for key, value in one.lora.items())
    assert torch.equal(manifest.centres, whole.centres)


def test_what_is_wrong_with_several_students_is_said(job: Job) -> None:
    with pytest.raises(BadPlan, match="4 students were asked for"):
        trained_several(job, count=4)
    alone = dataclasses.replace(job, path=job.path.with_name("alone.safetensors"))
    distill(alone)
    with pytest.raises(OtherTraining, match="no manifest"):
        trained_several(alone)
    manifest = trained_several(job)
    with pytest.raises(NeedsTeacher, match="connect it to the input teacher"):
        load_student(Source(job.path, "students"))
    saving.write(
        job.path, {CENTRES: manifest.centres[:1]}, {"format": MANIFEST_FORMAT, "files": list(manifest.files)}
    )
    with pytest.raises(DamagedFile, match="lacks some of its parts"):
        on_teacher(job.path, job.teacher)
    saving.write_manifest(dataclasses.replace(manifest, files=("gone.safetensors", manifest.files[1])))
    with pytest.raises(MissingFile, match=r"gone\.safetensors"):
        on_teacher(job.path, job.teacher)


def test_pictures_go_to_the_student_of_their_prompt(job: Job) -> None:
    latents = (
        torch.arange(8).float().reshape(8, 1, 1, 1)
    )  # two whole rounds of three prompts, and two more pictures
    mine = several.pictures_of(latents, torch.tensor([0, 2]), 3)
    assert mine.flatten().tolist() == [0, 2, 3, 5]


def test_an_interruption_whose_save_fails_stays_an_interruption(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    def interrupt(running: run.Running, progress: Any) -> None:
        monkeypatch.setattr(common_files, "save_file", full)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(job, interrupt)
    assert "No space left" in caplog.text


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("cuda"), MemoryError(), RuntimeError("MPS backend out of memory")]
)
def test_every_way_of_running_out_of_memory_is_said_and_what_there_is_is_saved(
    job: Job, error: Exception
) -> None:
    def fail(running: run.Running, progress: Any) -> None:
        if len(progress.losses) == 2:
            raise error

    with pytest.raises(NotEnoughMemory, match="lower the batch"):
        distill(job, fail)
    assert len(files.read_weights((job.path,))[0]["losses"]) == 2


def test_inputs_that_cannot_be_learned_from_are_refused_before_the_training(job: Job) -> None:
    broken = torch.full((1, 4, 8, 8), torch.nan)
    with pytest.raises(BadPlan, match="NaN"):
        distill(dataclasses.replace(job, latents=broken))
    for sigmas in (
        [10.0, 10.0, 5.0, 5.0, 0.0],
        [0.0, 1.0, 5.0, 10.0, 60.0],
        [9.0, 5.0, 3.0, torch.nan, 0.0],
        [1.0, 0.0],
    ):
        with pytest.raises(BadPlan, match="fall from step to step"):
            distill(dataclasses.replace(job, stage_two_sigmas=torch.tensor(sigmas)))
    with pytest.raises(CannotSave):
        distill(dataclasses.replace(job, path=job.path.with_name("CON.safetensors")))


def test_an_interrupted_node_says_how_long_it_would_take_and_how_far_its_file_is(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def interrupt() -> None:
        if len(told) == 7:  # core asks at every layer, too
            raise Interrupted

    monkeypatch.setattr("comfy.model_management.throw_exception_if_processing_interrupted", interrupt)
    monkeypatch.setattr("dizzydiff.nodes.distill.show_progress_at_node", told.append)
    with caplog.at_level("INFO"), pytest.raises(Interrupted):
        trained(job, 1)
    assert "student.safetensors is saved at 8 of 12 updates: queue again" in caplog.text
    assert [sentence.split(",")[0] for sentence in told] == [f"{n} of 12 updates" for n in range(2, 9)]
    assert all(" s each, about " in sentence for sentence in told)
    found = read(job.path, job.path.name)
    assert isinstance(found, Adapter) and description(found) == (
        "A student of teacher, for guidance 1 to 8, made for 2 steps: euler, simple, CFG 1, its training has "
        "not ended."
    )


def test_other_settings_of_any_of_several_students_are_told_before_the_first_is_trained(job: Job) -> None:
    last = job.path.with_name("student_2of2.safetensors")
    distill(dataclasses.replace(job, path=last))

    def never(running: run.Running, progress: Any) -> None:
        raise AssertionError("trained")

    with pytest.raises(OtherTraining, match="student_2of2"):
        several.distill_several(job, 2, never)


def test_students_go_to_the_folder_that_the_tooltip_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that was begun elsewhere goes on there."""
    old, named = tmp_path / "unet", tmp_path / "diffusion_models"
    monkeypatch.setattr("folder_paths.get_folder_paths", lambda kind: [str(old), str(named)])
    assert student_path("mine") == named / "mine.safetensors"
    old.mkdir()
    (old / "begun.safetensors").touch()
    assert student_path("begun") == old / "begun.safetensors"
