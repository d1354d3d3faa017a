# SPDX-License-Identifier: GPL-3.0-or-later
"""What loading a student brings into the process, and what it leaves out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.model_sampling
import comfy.utils
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dizzydiff.students.errors import ConfigMismatch
from dizzydiff.students.schedule import read_schedule

LOAD = """
import pathlib, runpy, sys
sys.path.insert(0, {comfyui!r})
from comfy.cli_args import args
args.cpu = True
root = pathlib.Path({root!r})
runpy.run_path(str(root / "devtools" / "package.py"))["load_package"]("dizzydiff", root)
from dizzydiff.students.loader import Source
from dizzydiff.students.student_model import load_student
load_student(Source(root / "tiny" / "unet", "tiny"))
print(*[name for name in sys.modules if name.startswith("dizzydiff.students.distill")])
"""


def test_loading_a_student_imports_nothing_of_training(root: Path) -> None:
    script = LOAD.format(comfyui=str(Path(comfy.utils.__file__).parents[1]), root=str(root))
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == ""


@settings(deadline=None, max_examples=60)
@given(
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    timesteps=st.integers(1, 4000),
    schedule=st.sampled_from(["linear", "scaled_linear"]),
)
def test_a_schedule_has_sigmas_that_are_numbers_or_is_refused(
    start: float, end: float, timesteps: int, schedule: str
) -> None:
    config = {
        "beta_schedule": schedule,
        "beta_start": start,
        "beta_end": end,
        "num_train_timesteps": timesteps,
    }
    try:
        found = read_schedule(config, "s")
    except ConfigMismatch:
        return
    assert found is not None
    sampling = comfy.model_sampling.ModelSamplingDiscrete(SimpleNamespace(sampling_settings=found.settings))
    assert sampling.sigmas.isfinite().all()


def test_a_schedule_that_leaves_nothing_of_a_picture_is_refused() -> None:
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.9, "beta_end": 0.012}
    with pytest.raises(ConfigMismatch, match="leave nothing of a picture"):
        read_schedule(config, "s")
    assert read_schedule({**config, "beta_start": 0.00085}, "s") is not None
