"""The report: self-contained, escaped, and made from whatever the run left."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cluster.report import write_report
from services.errors import VideoError
from services.metrics import MetricsSink
from services.schema import Group, Question, Reward, Selection, Trajectory, Turn, VisualInput
from services.trajectories import write_trajectories

FRAMES = (2, 5, 7)


class FakeCache:
    """Frames of one colour each; records what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def read(self, key: str, indices: Sequence[int]) -> np.ndarray:
        self.asked.append((key, tuple(indices)))
        return np.stack([np.full((56, 84, 3), 20 * index, np.uint8) for index in indices])


class EmptyCache:
    """A cache whose video was quarantined."""

    def read(self, key: str, indices: Sequence[int]) -> np.ndarray:
        raise VideoError(f"{key}: no such <video>")


def make_group(step: int, question_id: str) -> Group:
    question = Question(question_id, "/videos/a.mp4", f"Where does {question_id} land?", ("here", "A & B"), "B")
    ids, log_probs = np.zeros(1, np.int32), np.zeros(1, np.float32)
    visual = VisualInput("key-of-a", FRAMES, 10, 56, 84)
    turn = Turn(ids, ids, log_probs, "<script>alert('$x$')</script>", truncated=False, version=step, visual=visual)
    similarity = np.random.default_rng(step).random((2, 10), dtype=np.float32)
    selection = Selection(FRAMES, FRAMES, -1.0, 2.0, similarity, version=step)
    queries = ("a $ball$ <b>", "a wall")
    reward = Reward({"accuracy": 0.8, "format": 0.1, "info": 0.05, "brevity": -0.25})
    trajectory = Trajectory(question_id, 0, 0, turn, queries, False, selection, turn, "B", reward)
    return Group(question, (trajectory,))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, with its report."""
    run_dir = tmp_path_factory.mktemp("runs") / "run-a"
    make_run(run_dir, steps=3)
    cache = FakeCache()
    assert write_report(run_dir, cache) == run_dir / "report.html"
    assert cache.asked == [("key-of-a", FRAMES)] * 8
    return run_dir


@pytest.fixture
def page(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text()


def make_run(run_dir: Path, steps: int) -> None:
    with MetricsSink(run_dir, steps) as sink:
        for step in range(1, steps + 1):
            rewards = {"reward/total": 0.1 * step, "reward/brevity": -0.25 * step}
            metrics = rewards | {"policy/loss": float("nan"), "timing/rollout": 1.5}
            sink.log(step, metrics if step == 1 else {**metrics, "sampler/entropy": 2.0, "timing/step": 1.25})
            write_trajectories(run_dir, step, [make_group(step, f"q{place}") for place in range(5)])
    (run_dir / "config.yaml").write_text("name: <tag>\n")


def images(page: str, media_type: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(f'src="data:{re.escape(media_type)};base64,([^"]+)"', page)]


def test_page_of_a_run(page: str) -> None:
    assert "<h1>run-a</h1>" in page
    assert "name: &lt;tag&gt;" in page
    assert "<td>reward</td><td>0.1</td><td>0.3</td>" in page
    assert "<td>reward: brevity</td><td>-0.25</td><td>-0.75</td>" in page
    assert "= accuracy 0.80 + format 0.10 + info 0.05 + brevity -0.25<" in page
    assert "policy loss" not in page, "a metric without one finite value has nothing to show"
    assert "Sampler entropy" in page
    assert "Mismatch KL" not in page
    assert all(f"Where does q{place} land?" in page for place in range(4))
    assert "Where does q4 land?" not in page
    assert '<li class="answer">B. A &amp; B ✓</li>' in page
    assert "Step 1<" in page
    assert "Step 2<" not in page
    assert "Step 3<" in page


def test_what_a_model_wrote_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    assert "a $ball$ &lt;b&gt;" in page


def test_page_refers_to_nothing_outside(page: str) -> None:
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "url(" not in page
    assert "@import" not in page


def test_pictures_are_valid(page: str) -> None:
    charts = images(page, "image/svg+xml")
    assert b">brevity<" in charts[0]
    assert len(charts) == 3 + 8, "reward, step time, entropy; two plots of each of four questions"
    assert all(ElementTree.fromstring(chart).tag.endswith("svg") for chart in charts)
    thumbnails = [Image.open(io.BytesIO(data)) for data in images(page, "image/jpeg")]
    assert len(thumbnails) == 8 * len(FRAMES)
    assert thumbnails[1].size == (84, 56)
    assert abs(int(np.asarray(thumbnails[1]).mean()) - 20 * FRAMES[1]) <= 2


def test_run_of_one_step(tmp_path: Path) -> None:
    make_run(tmp_path, steps=1)
    page = write_report(tmp_path, FakeCache()).read_text()
    assert '<p class="soft">step 1</p>' in page
    assert len(images(page, "image/svg+xml")) == 2 + 4, "reward, step time; one plot of each of four questions"


def test_missing_frames_are_said(tmp_path: Path) -> None:
    make_run(tmp_path, steps=1)
    page = write_report(tmp_path, EmptyCache()).read_text()
    assert "No frames to show: key-of-a: no such &lt;video&gt;" in page
    assert images(page, "image/jpeg") == []


def test_run_that_left_nothing(tmp_path: Path) -> None:
    page = write_report(tmp_path, FakeCache()).read_text()
    assert "no step was logged" in page
    assert "<img" not in page


def test_shares_beside_a_curve_of_zeros_have_their_scale(tmp_path: Path) -> None:
    with MetricsSink(tmp_path, 2) as sink:
        for step, share in ((1, 0.25), (2, 0.125)):
            sink.log(step, {"rollout/groups_without_signal": 0.0, "rollout/answers_unparsed": share})
    (chart,) = images(write_report(tmp_path, FakeCache()).read_text(), "image/svg+xml")
    assert ">0.2<" in chart.decode() or ">0.20<" in chart.decode()
