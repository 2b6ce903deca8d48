"""The house is kept in order: no circle of imports, short files and functions, docstrings that stand alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGES = ("services", "learners", "actors", "cluster")
LONGEST_FILE, LONGEST_FUNCTION = 350, 60
"""Lines."""
HANGING = ("Of", "That", "Those", "Where", "Whose", "Which")
"""First words of a docstring that means nothing without the name above it."""


def files(*folders: str) -> Iterator[tuple[str, str]]:
    """Path and text of every Python file."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text()


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(imported).static_order())) == len(graph.modules)


def test_files_and_functions_are_short() -> None:
    long = []
    for path, text in files(*PACKAGES):
        if (lines := text.count("\n")) > LONGEST_FILE:
            long.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    assert not long


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those under constants and fields among them."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(docstring))):
                yield node.lineno, docstring


def test_docstrings_stand_alone() -> None:
    hanging = [
        f"{path}:{line}: {docstring}"
        for path, text in files(*PACKAGES, "tests", "benchmarks", "examples")
        for line, docstring in docstrings(text)
        if docstring.split()[0] in HANGING
    ]
    assert not hanging
