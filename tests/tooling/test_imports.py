# SPDX-License-Identifier: GPL-3.0-or-later
"""Which way imports go, read from the source of every module of the pack."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

FEATURES = {"students", "stability", "drafting", "compare", "noise"}
SHARED = {"kernels", "common"}
MAY_IMPORT = {
    "nodes": FEATURES | SHARED | {"tiny"},
    **dict.fromkeys(FEATURES, SHARED),
    "common": set(),
    "kernels": set(),
    "tiny": FEATURES | SHARED | {"devtools"},
}
"""Every package that users have, and what it may import beside itself. Features don't know one another: what
passes between them is a value in common/, or passes through nodes/.
"""
OUTSIDE = {"devtools", "benchmarks", "tests"}
"""Packages that no user needs, and that may import anything."""
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview"}
COMFYUI |= {"node_helpers", "nodes", "server", "execution", "comfyui_version"}
MEET_COMFYUI = {
    "drafting.backends.base",
    "drafting.backends.batch",
    "drafting.backends.cluster",
    "drafting.backends.graph",
    "drafting.backends.replicas",
    "drafting.backends.workers",
    "drafting.cluster.entrance",
    "drafting.cluster.files",
    "drafting.cluster.latent",
    "drafting.cluster.place",
    "drafting.cluster.worker",
    "drafting.devices",
    "drafting.own_noise",
    "drafting.sampler",
    "stability.measured",
    "stability.samplers",
    "stability.scheduler",
    "stability.subject",
    "stability.watching",
    "students.bypass",
    "students.core_families",
    "students.distill.failures",
    "students.distill.guider",
    "students.distill.guider_visits",
    "students.distill.memory",
    "students.distill.plain_lora",
    "students.distill.teacher",
    "students.distill.trainable",
    "students.guidance_schedule",
    "students.loader",
    "students.networks",
    "students.pipeline",
    "students.sampler",
    "students.student_model",
}
"""The modules of the features that work on ComfyUI's own objects. All others are torch only."""
HEAVY = {"triton", "diffusers", "transformers", "matplotlib", "ray", "aiohttp"}
"""What loads when it is first used. ComfyUI has imported torch, numpy, scipy and PIL before any pack."""

Import = tuple[str, bool]
"""(absolute name, whether it happens as soon as the importing module is)."""


def imports(path: Path, root: Path) -> Iterator[Import]:
    """All that a module imports, wherever it says so; what is in the pack begins with a dot."""
    package = list(path.relative_to(root).parts[:-1])

    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = package[: len(package) - node.level + 1] if node.level else []
            base = [*inside, *(node.module.split(".") if node.module else [])]
            dot = "." if node.level else ""
            yield from ((f"{dot}{'.'.join([*base, alias.name])}", at_once) for alias in node.names)
        inner = at_once and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def packages(root: Path) -> set[str]:
    """Folders of the clone that hold Python."""
    folders = (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return {folder.name for folder in folders if any(folder.rglob("*.py"))}


@pytest.fixture(scope="module")
def modules(root: Path) -> dict[str, list[Import]]:
    """Every module of what users have: dotted name to what it imports."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): list(imports(path, root))
        for package in MAY_IMPORT
        for path in (root / package).rglob("*.py")
    }


def inside(name: str) -> str | None:
    """The package of the pack that a name belongs to."""
    return name.split(".")[1] if name.startswith(".") else None


def test_every_package_has_its_rule(root: Path) -> None:
    known = MAY_IMPORT.keys() | OUTSIDE
    assert packages(root) <= known, "say in MAY_IMPORT what a new package may import"
    assert not known - packages(root)


def test_arrows_go_one_way(modules: dict[str, list[Import]]) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, made in modules.items()
        for name, _ in made
        if (package := inside(name)) is not None
        and package not in MAY_IMPORT[module.split(".")[0]] | {module.split(".")[0]}
        and not (module.endswith("__main__") and package == "devtools")
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour(modules: dict[str, list[Import]]) -> None:
    def target(name: str) -> str | None:
        """The module that a name is, or is in."""
        while name and name not in modules and f"{name}.__init__" not in modules:
            name = name.rpartition(".")[0]
        return (name if name in modules else f"{name}.__init__") if name else None

    graph = {
        module: {target(name[1:]) for name, _ in made if name.startswith(".")} - {None, module}
        for module, made in modules.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_only_named_modules_of_the_features_meet_comfyui(modules: dict[str, list[Import]]) -> None:
    meeting = {
        module
        for module, made in modules.items()
        if any(name.split(".")[0] in COMFYUI for name, _ in made)
        and module.split(".")[0] in FEATURES | SHARED
    }
    assert meeting == MEET_COMFYUI


def test_nothing_heavy_is_imported_before_it_is_used(modules: dict[str, list[Import]]) -> None:
    assert not [
        f"{module} imports {name}"
        for module, made in modules.items()
        for name, at_once in made
        if at_once
        and name.split(".")[0] in HEAVY
        and not module.endswith("_triton")
        and not module.startswith("tiny.")
    ]


def test_every_source_file_names_its_licence(root: Path) -> None:
    files = [*root.glob("*.py"), *(file for name in packages(root) for file in (root / name).rglob("*.*"))]
    sources = [file for file in files if file.suffix in (".py", ".mjs", ".js") and file.stat().st_size]
    assert len(sources) > 150
    assert not [
        str(file.relative_to(root))
        for file in sources
        if "SPDX-License-Identifier: GPL-3.0-or-later" not in file.read_text(encoding="utf-8")[:200]
    ]
