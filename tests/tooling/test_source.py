# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that every source file keeps, and that no linter holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """Lines where text is read or written, or a program's output decoded, in whatever encoding the machine
    has.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {keyword.arg for keyword in node.keywords}
        words = [each.value for each in node.args if isinstance(each, ast.Constant)]
        modes = [word for word in words if isinstance(word, str) and set(word) <= set("rwxabt+") and word]
        text = {
            "read_text": not node.args,
            "write_text": len(node.args) == 1,
            "open": "b" not in (modes[-1] if modes else "")
            and (isinstance(node.func, ast.Name) or bool(modes)),
            "run": "text" in named,
            "Popen": "text" in named,
            "check_output": "text" in named,
        }
        if text.get(name) and "encoding" not in named:
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.read_text('utf-8')", False),
        ("path.write_text('a', newline='')", True),
        ("path.open('w')", True),
        ("path.open('rb')", False),
        ("open(path)", True),
        ("open(path, 'xb')", False),
        ("Image.open(path)", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, encoding='utf-8')", False),
    ],
)
def test_the_rule_tells_text_without_an_encoding(source: str, told: bool) -> None:
    assert bool(list(without_encoding(ast.parse(source)))) is told


def test_text_is_utf_8_on_every_machine(root: Path) -> None:
    files = (file for file in root.rglob("*.py") if not file.relative_to(root).parts[0].startswith("."))
    assert not [
        f"{file.relative_to(root)}:{line}"
        for file in files
        for line in without_encoding(ast.parse(file.read_text(encoding="utf-8")))
    ]


PRODUCT = ("nodes", "students", "stability", "drafting", "kernels", "common", "compare")
LONGEST_FILE, LONGEST_FUNCTION = 300, 50
"""Lines; what is longer is divided along its sense."""


def product(root: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every source file of what users run."""
    for package in PRODUCT:
        for file in (root / package).rglob("*.py"):
            yield str(file.relative_to(root)), file.read_text(encoding="utf-8")


def test_no_file_of_the_product_is_longer_than_is_read_at_once(root: Path) -> None:
    lengths = {name: text.count("\n") for name, text in product(root)}
    assert len(lengths) > 50
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_function_of_the_product_is_longer_than_is_read_at_once(root: Path) -> None:
    functions = (
        (f"{name}:{node.lineno} {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for name, text in product(root)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    assert not {place: lines for place, lines in functions if lines > LONGEST_FUNCTION}
