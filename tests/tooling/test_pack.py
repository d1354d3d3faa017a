# SPDX-License-Identifier: GPL-3.0-or-later
"""What ComfyUI and the registry expect of the pack as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from devtools.process import environment

HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "triton", "comfy", "comfy_api")


def test_loading_the_pack_imports_nothing_heavy(root: Path) -> None:
    script = f"""
import runpy, sys
runpy.run_path({str(root / "devtools" / "package.py")!r})["load_package"]("dizzydiff", __import__("pathlib").Path({str(root)!r}))
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_source_file_names_its_licence(root: Path) -> None:
    folders = ("nodes", "students", "tiny", "tests", "devtools", "benchmarks")
    files = [root / "__init__.py", root / "dev.py", *(file for folder in folders for file in (root / folder).rglob("*.py"))]
    assert not [file for file in files if file.stat().st_size and "SPDX-License-Identifier: GPL-3.0-or-later" not in file.read_text()[:200]]


def test_the_registry_finds_what_it_needs(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    assert settings["project"]["name"] == "dizzydiff"
    assert {"version", "license", "requires-python", "urls"} <= settings["project"].keys()
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= settings["tool"]["comfy"].keys()


@pytest.mark.parametrize("name", ["requirements-dev.txt", "constraints.txt"])
def test_development_packages_are_pinned(name: str, root: Path) -> None:
    lines = [line.partition("#")[0].strip() for line in (root / name).read_text().splitlines()]
    assert all("==" in line for line in lines if line)


def test_the_registrys_own_tool_accepts_the_pack(root: Path, tmp_path: Path) -> None:
    private = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    done = subprocess.run(command, cwd=root, env=environment(private), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout + done.stderr
