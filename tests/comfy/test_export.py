# SPDX-License-Identifier: GPL-3.0-or-later
"""Students for a ComfyUI without this pack: core's own Load LoRA makes of an exported file the student at its
scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import nodes
from dizzydiff.nodes.export import ExportLoRA
from dizzydiff.nodes.students import LoadPipeline
from dizzydiff.students import files
from dizzydiff.students.adapter import Adapter, Manifest
from dizzydiff.students.distill.errors import NotExportable, OtherTraining
from dizzydiff.students.distill.plain_lora import other_patches, plain_lora
from dizzydiff.students.loader import WEIGHT_DTYPES, Source, load_unet
from dizzydiff.students.student_model import DISTILLED, student_of

from .adapters import random_adapter
from .transformers import FAMILIES, build, encoder

TINY = Path(__file__).resolve().parents[2] / "tiny" / "teacher"


def teacher_of(kind: str) -> tuple[Any, Any, tuple[int, ...]]:
    """(MODEL, encode, shape of a latent)."""
    if kind in FAMILIES:
        return build(kind), encoder(FAMILIES[kind].pooled), FAMILIES[kind].shape
    model, clip, _ = LoadPipeline.execute("tiny/flow" if kind == "tiny/flow" else "tiny/teacher").result
    if kind in WEIGHT_DTYPES:
        model = load_unet(Source(TINY, "tiny/teacher", kind))
    shape = (model.model.latent_format.latent_channels, 8, 8)
    return model, lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text)), shape


def sampled(model: Any, shape: tuple[int, ...], conditioning: list, guidance: float | None = None) -> Tensor:
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(4))
    options = {} if guidance is None else {"guidance": guidance}
    positive = [[conditioning[0][0], {**conditioning[0][1], **options}]]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    sampler = comfy.samplers.sampler_object("euler")
    empty = torch.zeros_like(noise)
    return comfy.sample.sample_custom(
        model, noise, 1.0, sampler, sigmas, positive, positive, empty, disable_pbar=True
    )


def exported(student: Any, teacher: Any, g: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The student as core's own node loads it from the file."""
    monkeypatch.setattr("folder_paths.get_folder_paths", lambda kind: [str(path / kind)])
    (name,) = ExportLoRA.execute(student, g, "mine").result[0]
    monkeypatch.setattr("folder_paths.get_full_path_or_raise", lambda kind, name: str(path / kind / name))
    return nodes.LoraLoaderModelOnly().load_lora_model_only(teacher, name, 1.0)[0]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", ["fp32", "fp16", "tiny/flow", *FAMILIES])
def test_cores_own_loader_makes_the_student_of_the_teacher(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, encode, shape = teacher_of(kind)
    student = student_of(teacher, random_adapter(teacher, encode, shape), kind)
    expected = sampled(student, shape, encode("red"), 5.0)
    answer = sampled(exported(student, teacher, "5", tmp_path, monkeypatch), shape, encode("red"))
    assert distance(answer, expected) < 1e-4
    assert distance(sampled(student, shape, encode("red"), 1.0), expected) > 1e-3, "the scale matters"
    assert not [record for record in caplog.records if "not loaded" in record.message.lower()]


@pytest.fixture(scope="module")
def sd3() -> tuple[Any, Adapter]:
    """A teacher, and the adapter of its four-step student."""
    teacher, encode, shape = teacher_of("SD3")
    return teacher, random_adapter(teacher, encode, shape, steps=4, first_steps=8, borders=None)


def test_a_teacher_with_a_lora_of_its_own_keeps_it_apart(
    sd3: tuple[Any, Adapter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The shift is that of the layer under both, the pairs are the student's alone."""
    teacher, adapter = sd3
    own = {
        f"diffusion_model.{adapter.time_layer}.{part}.weight": torch.randn(*shape) / 8
        for part, shape in (("lora_up", (64, 2)), ("lora_down", (2, 256)))
    }
    teacher, _ = comfy.sd.load_lora_for_models(teacher, None, own, 1.0, 0.0)
    student = student_of(teacher, adapter, "SD3")
    text, shape = encoder(48)("red"), FAMILIES["SD3"].shape
    with caplog.at_level("INFO"):
        answer = sampled(exported(student, teacher, "3", tmp_path, monkeypatch), shape, text)
    assert distance(answer, sampled(student, shape, text, 3.0)) < 1e-4
    assert other_patches(student) == 1 and "1 patches of other nodes" in caplog.text


def test_each_scale_gets_a_file_that_says_how_it_wants_to_be_sampled(
    sd3: tuple[Any, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, adapter = sd3
    monkeypatch.setattr("folder_paths.get_folder_paths", lambda kind: [str(tmp_path / kind)])
    for _ in range(2):  # an export of before is replaced
        names = ExportLoRA.execute(student_of(teacher, adapter, "SD3"), "1, 2.5", "mine").result[0]
    assert names == ["mine_g1.safetensors", "mine_g2.5.safetensors"]
    assert sorted(path.name for path in (tmp_path / "loras").iterdir()) == names
    _, told = files.read_weights((tmp_path / "loras" / names[1],))
    expected = {"steps": 4, "sampler_name": "euler", "scheduler": "simple", "cfg": 1, "guidance_scale": 2.5}
    assert told | expected == told and told["teacher_name"] == "teacher"


def test_no_file_of_another_origin_is_replaced(
    sd3: tuple[Any, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("folder_paths.get_folder_paths", lambda kind: [str(tmp_path / kind)])
    teacher, adapter = sd3
    others = tmp_path / "loras" / "mine_g4.safetensors"
    others.parent.mkdir()
    save_file({"a": torch.ones(1)}, others)
    before = others.read_bytes()
    with pytest.raises(OtherTraining, match="mine_g4"):
        ExportLoRA.execute(student_of(teacher, adapter, "SD3"), "1, 4", "mine")
    assert others.read_bytes() == before and list(others.parent.iterdir()) == [others]
    for name in ("../mine", "/mine", "C:mine", ""):
        assert "is not a name inside" in str(ExportLoRA.validate_inputs(name=name))
    assert "expected numbers" in str(ExportLoRA.validate_inputs(scales="four"))
    assert ExportLoRA.validate_inputs() is True


def test_what_is_no_single_student_with_a_bias_is_refused(sd3: tuple[Any, Adapter]) -> None:
    teacher, adapter = sd3
    with pytest.raises(NotExportable, match="not a student of Distill Guidance"):
        plain_lora(teacher, 4.0)
    several = teacher.clone()
    names = ("mine_1of2.safetensors", "mine_2of2.safetensors")
    several.set_attachments(DISTILLED, Manifest(Path("mine.safetensors"), torch.zeros(2, 4), names))
    with pytest.raises(NotExportable, match=r"mine\.safetensors joins 2 students.*load mine_1of2"):
        plain_lora(several, 4.0)
    student = student_of(build("SD3"), adapter, "SD3")
    student.model.diffusion_model.t_embedder.mlp[0].bias = None
    with pytest.raises(NotExportable, match=r"t_embedder\.mlp\.0, .* has no bias"):
        plain_lora(student, 4.0)
