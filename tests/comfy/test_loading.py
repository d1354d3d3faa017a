# SPDX-License-Identifier: GPL-3.0-or-later
"""What loading a student brings into the process, and what it leaves out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import comfy.utils

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
