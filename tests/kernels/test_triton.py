# SPDX-License-Identifier: GPL-3.0-or-later
"""The Triton kernels without a GPU: run by Triton's interpreter, compiled for devices that are not here,
imported by nobody.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from devtools.process import printed

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform"
)


def python(root: Path, *arguments: str, **settings: str) -> str:
    return printed([sys.executable, "-P", *arguments], root, settings)


@needs_triton
def test_the_interpreter_passes_the_tests_of_accuracy_and_qualification(root: Path) -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    files = ("tests/kernels/test_accuracy.py", "tests/kernels/test_dispatch.py")
    out = python(root, *pytest_, "-k", "triton", *files, TRITON_INTERPRET="1")
    passed = re.search(r"(\d+) passed", out)
    assert passed and int(passed[1]) > 100, out


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_kernels_compile_for_gpus(
    capability: int, dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dizzydiff.kernels import carry_triton, linear_combinations_triton

    pointer, block = f"*{dtype}", {"BLOCK": 1024}
    sources = [
        ASTSource(
            linear_combinations_triton.kernel,
            {
                "tensors": (pointer,) * 9,
                "weights": "*fp32",
                "out": pointer,
                "n": "i32",
                "R": "constexpr",
                "ROWS": "constexpr",
                "BLOCK": "constexpr",
            },
            {"R": 3, "ROWS": 4, **block},
        ),
        ASTSource(
            carry_triton.kernel,
            {
                "D": pointer,
                "at": pointer,
                "x": pointer,
                "out": pointer,
                "squares": "*fp32",
                "c": "fp32",
                "n": "i32",
                "P": "constexpr",
                "BLOCK": "constexpr",
            },
            {"P": 2, **block},
        ),
    ]
    for source in sources:
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


def test_drafting_imports_no_triton_and_nothing_heavy(root: Path) -> None:
    """Importing torch alone is free to load what it likes; what the pack adds to it is counted."""
    script = f"""
import pathlib, runpy, sys, torch
before = set(sys.modules)
load_package = runpy.run_path({str(root / "devtools" / "package.py")!r})["load_package"]
load_package("dizzydiff", pathlib.Path({str(root)!r}))
import dizzydiff.drafting.speculation
from dizzydiff.kernels.carry import carry
from dizzydiff.kernels.linear_combinations import linear_combinations
carry(torch.ones(1, 3), torch.ones(3), torch.zeros(3), 0.5), linear_combinations([[1.0]], [torch.ones(3)])
print(*({{"triton", "diffusers", "transformers", "matplotlib", "comfy"}} & (set(sys.modules) - before)))
"""
    assert python(root, "-c", script).strip() == ""
