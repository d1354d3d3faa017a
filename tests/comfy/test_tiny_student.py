# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded teacher, distilled by the engine for the user's models: the recipe of tiny/, and what the node
shows of it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from dizzydiff.nodes.distill import PREVIEWED, Show
from dizzydiff.students.distill.run import distill
from dizzydiff.tiny import student


@pytest.fixture
def pipeline(root: Path, tmp_path: Path) -> Path:
    """The embedded pipeline without its student."""
    folder = tmp_path / "tiny"
    for part in ("teacher", "text_encoder", "vae", "scheduler"):
        shutil.copytree(root / "tiny" / part, folder / part)
    return folder


def test_the_student_is_written_beside_its_teacher_for_diffusers(
    pipeline: Path, root: Path, tmp_path: Path
) -> None:
    plan = replace(student.PLAN, updates=2, batch=2)
    losses = student.make_student(
        pipeline, tmp_path / "adapter.safetensors", lambda running, progress: None, plan, prompts=4
    )
    assert len(losses) == 2
    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet")
    assert unet.config.time_cond_proj_dim == 256
    teacher, made = (
        load_file(pipeline / part / "diffusion_pytorch_model.safetensors") for part in ("teacher", "unet")
    )
    assert any((made[key].float() != weight.float()).any() for key, weight in teacher.items())
    for part in ("scheduler/scheduler_config.json", "unet/config.json"):
        assert json.loads((pipeline / part).read_text(encoding="utf-8")) == json.loads(
            (root / "tiny" / part).read_text(encoding="utf-8")
        ), part


def test_the_node_shows_what_the_student_draws_also_where_previews_are_off(
    root: Path, tmp_path: Path
) -> None:
    embedded = student.embedded(root / "tiny")
    show = Show(embedded.teacher, 4.0)
    distill(
        embedded.job(
            tmp_path / "student.safetensors", student.captions(2), replace(student.PLAN, updates=1, batch=1)
        ),
        show,
    )
    assert [picture.size for picture in show.pictures] == [(12, 12)] * PREVIEWED
