"""The table holds every metric once, and the code no other. `tests/end_to_end/test_command.py` sees each of them logged."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from cluster.report import CHARTS
from services.metrics.console import format_line
from services.metrics.names import METRICS, named, row_of

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "cluster/report.py", ROOT / "cluster/figures.py", *(ROOT / "services/metrics").glob("*.py")]
NAMES = ROOT / "services/metrics/names.py"
SOURCES = [path for floor in ("actors", "learners", "services", "cluster") for path in (ROOT / floor).rglob("*.py")]


def literals(path: Path) -> Iterator[str]:
    """What could be a metric's name in a file: its strings of a known family, `*` where an f-string puts a value."""
    families = {metric.family for metric in METRICS}
    for node in ast.walk(ast.parse(path.read_text())):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else "*" for part in parts]
        if all(isinstance(text, str) for text in texts):
            family, slash, rest = "".join(texts).partition("/")
            if family in families and slash and rest and set(rest) <= set("abcdefghijklmnopqrstuvwxyz_/*"):
                yield f"{family}/{rest}"


def test_every_name_in_the_code_is_in_the_table() -> None:
    found = {(literal, path) for path in SOURCES if path != NAMES for literal in literals(path)}
    assert {"policy/mismatch_kl", "reward/*", "timing/*"} <= {literal for literal, _ in found}
    assert [pair for pair in found if not any(fnmatch(metric.name, pair[0]) for metric in METRICS)] == []


def test_what_shows_metrics_names_none() -> None:
    assert [literal for path in PAGES if path != NAMES for literal in literals(path)] == []


def test_every_row_can_be_shown() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert {metric.chart for metric in METRICS} - {""} == CHARTS.keys()
    assert all(metric.curve for metric in METRICS if metric.chart)
    assert format_line(1, 1, dict.fromkeys(names, 0.5)).count("0.5") > 10


@pytest.mark.parametrize(
    ("name", "row", "label"),
    [
        ("reward/info", "reward/info", "info reward"),
        ("reward/brevity", "reward/<term>", "reward: brevity"),
        ("policy/zero_gradients/visual", "policy/zero_gradients/<part>", "policy visual: weights without gradient"),
        ("accuracy/after", "accuracy/after", "validation accuracy after training"),
        ("accuracy/after/8", "accuracy/after/<K>", "validation accuracy after training, with 8 frames"),
    ],
)
def test_a_name_finds_its_row(name: str, row: str, label: str) -> None:
    found = row_of(name)
    assert found is not None
    assert found.name == row
    assert [(metric.name, metric.label) for metric in named([name])] == [(name, label)]


@pytest.mark.parametrize("name", ["policy/los", "reward/", "policy", "timing/lunch"])
def test_other_names_have_no_row(name: str) -> None:
    assert row_of(name) is None
    assert named([name]) == []
