"""The examples of docs/extending.md work as they stand, and touch no more files than the page says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.cli import TOY
from cluster.config import load_config
from learners.objectives import check_loss, find_loss
from learners.rewards import Attempt, score
from services.schema import Question, Selection, Turn

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()


@dataclass(frozen=True)
class Chapter:
    """What one chapter of the page tells the reader to write."""

    files: dict[str, str]
    """Content of each new file, by its path."""
    changes: dict[str, list[tuple[str, str]]]
    """For each changed file the pieces of text that are replaced, and what they become."""

    def apply(self, house: Path) -> None:
        """Write the files and make the changes under `house`."""
        for path, content in self.files.items():
            (house / path).parent.mkdir(exist_ok=True)
            (house / path).write_text(content)
        for path, pieces in self.changes.items():
            text = (house / path).read_text()
            for before, after in pieces:
                assert text.count(before) == 1, f"{path} is not as the page says: {before}"
                text = text.replace(before, after)
            (house / path).write_text(text)


def chapter(title: str) -> Chapter:
    """The chapter under that heading."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    files = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL))
    changes = dict(re.findall(r"```diff\n# (\S+)\n(.*?)```", text, re.DOTALL))
    return Chapter(files, {path: [_piece(hunk) for hunk in diff.split("@@\n")] for path, diff in changes.items()})


def _piece(hunk: str) -> tuple[str, str]:
    lines = hunk.splitlines(keepends=True)
    before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
    return before, after


def table() -> dict[str, tuple[int, int]]:
    """Files to write and rows to add, by what is added."""
    rows = re.findall(r"^\| \[a (.+)\]\(.+\) \| (\d+) \| (\d+|none) \|$", PAGE, re.MULTILINE)
    return {kind: (int(files), 0 if changes == "none" else int(changes)) for kind, files, changes in rows}


@pytest.mark.parametrize("kind", ["reward", "loss", "selection rule", "question form", "tracker", "benchmark"])
def test_no_more_files_are_touched_than_the_page_says(kind: str) -> None:
    found = chapter(f"A {kind}")
    assert (len(found.files), len(found.changes)) == table()[kind]
    assert len(found.files) <= 1 and len(found.changes) <= 1


def test_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter("A reward").apply(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config(TOY, ["--rewards.extra=[rewards/brevity.py:brevity]"]).rewards
    turn = Turn(*[np.zeros(1)] * 3, text="x" * 1000, truncated=True, version=0, visual=None)
    selection = Selection((2, 5), (5, 2), -1.0, 2.0, np.zeros((1, 9)), version=0)
    attempt = Attempt(turn, ("a ball",), selection, turn, "B", formatted=True)
    reward = score(Question("q", "/v.mp4", "Which?", ("x", "y"), "B"), attempt, config)
    assert reward.terms["brevity"] == pytest.approx(-0.2)


def test_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter("A loss").apply(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config(TOY, ["--policy.loss=losses/cispo.py:cispo", "--policy.clip_high=0.3"]).policy
    check_loss(config)
    log_ratio = torch.tensor([0.5, 1.0, 1.5]).log().requires_grad_()
    loss, clipped = find_loss(config.loss)(log_ratio, torch.tensor([1.0, 1.0, -2.0]), (3,), config)
    loss.sum().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-0.5, -1.0, 2.6]))
    assert clipped.tolist() == [False, False, True]


@pytest.fixture
def in_a_house_with(tmp_path: Path) -> Callable[[str, str], str]:
    """Applies a chapter to a copy of the four packages, runs Python code there, and returns what it prints."""

    def run(title: str, code: str) -> str:
        for package in ("actors", "cluster", "learners", "services"):
            shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("models", "__pycache__"))
        chapter(title).apply(tmp_path)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_selection_rule(in_a_house_with: Callable[[str, str], str]) -> None:
    printed = in_a_house_with(
        "A selection rule",
        """
import numpy as np
from actors.selector import SelectorActor
from cluster.cli import TOY
from cluster.config import load_config

config = load_config(TOY, ["--selector.kind=parts"])
similarity = np.zeros((2, 12), np.float32)
similarity[0, 1], similarity[1, 3], similarity[0, 10], similarity[1, 11] = 0.5, 0.25, 0.75, 0.5
selection = SelectorActor(config.selector, config.sampler, 0, None, config.data).select(similarity, 3, None)
print(config.selector.learns, *selection.frames)
""",
    )
    assert printed.splitlines()[-1] == "False 1 4 10"


def test_a_question_form(in_a_house_with: Callable[[str, str], str], tmp_path: Path) -> None:
    row = {"clip": "a.mp4", "ask": "What falls?", "choices": ["a cup", "a hat"], "correct": 1, "seen": [3, 4.5]}
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, (row, row | {"correct": 2}))))
    printed = in_a_house_with(
        "A question form",
        "import sys; from cluster.cli import run; sys.exit(run(['questions', 'quiz.jsonl', '--json']))",
    )
    found = json.loads(printed)
    assert (found["format"], found["questions"], found["answers"]) == ("Quiz", 1, {"B": 1})
    assert found["first"][0]["moments"] == [[[3.0, 4.5]]]
    assert found["refused"][0]["reason"] == "2; valid: an index from 0 to 1"


def test_a_tracker(in_a_house_with: Callable[[str, str], str], tmp_path: Path) -> None:
    in_a_house_with(
        "A tracker",
        """
from pathlib import Path
from cluster.cli import TOY
from cluster.config import load_config
from services.metrics import MetricsSink

config = load_config(TOY, ["--train.trackers=[csv]"])
with MetricsSink(Path("."), total_steps=2, trackers=config.train.trackers, config={}) as sink:
    sink.log(1, {"policy/loss": 0.5})
""",
    )
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["1,policy/loss,0.5"]


def test_a_benchmark(in_a_house_with: Callable[[str, str], str]) -> None:
    printed = in_a_house_with(
        "A benchmark",
        """
from services.schema import Question
from services.scoring import BENCHMARKS, request

print(repr(request("quiz", "official", Question("q", "a.mp4", "What falls?", ("a cup", "a hat"), "B"))))
print(BENCHMARKS["quiz"].official.extract("The answer is B"), BENCHMARKS["quiz"].headline)
""",
    )
    assert printed.splitlines() == [repr("What falls?\n[A] a cup\n[B] a hat\nWrite one letter."), "B macro"]
