"""Chosen frames carried to other programs and back: the same frames in every form, and no list that is not as it should be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.cli import run
from cluster.evaluation.frame_files import FORMS, FrameFile
from cluster.evaluation.setting import selectors
from services.errors import QuestionError, UserError
from services.questions import read_questions
from services.schema import Question, Video
from services.scoring import question_hash
from tests.services.odd_videos import write_video
from tests.services.predictions import write

DATA = Path(__file__).parents[1] / "data" / "questions"
BENCHMARKS = {
    "videomme": "videomme.json",
    "longvideobench": "longvideobench_val.json",
    "mlvu-dev": "mlvu_2_needle.json",  # without ids
}
SECONDS, FPS = 12, 25
CHOICES = [(0, 3, 7, 11), (1, 2, 5, 9), (4, 4, 4, 8)]
"""Candidate frames at a budget of 4; BOLT's rule takes some twice."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", np.arange(SECONDS * FPS) / FPS)


@pytest.fixture(params=BENCHMARKS)
def asked(request: pytest.FixtureRequest, clip: Path, tmp_path: Path) -> tuple[Path, list[Question]]:
    """A benchmark's file, and its questions, whose videos are there."""
    annotations = DATA / BENCHMARKS[request.param]
    questions = read_questions(annotations, tmp_path)
    for path in {question.video for question in questions}:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, path)
    return annotations, questions


def predictions(path: Path, questions: list[Question], benchmark: str = "videomme") -> Path:
    """A file of two selectors at two budgets; the second question could not be asked."""
    rows: list[dict[str, Any]] = []
    for selector in ("aks", "uniform"):
        for budget in (2, 4):
            for place, question in enumerate(questions):
                frames = CHOICES[place % len(CHOICES)] if selector == "aks" else range(4)
                row: dict[str, Any] = {"reply": None, "reason": "too long", "frames": []} if place == 1 else {}
                rows.append(
                    {
                        "benchmark": benchmark, "question_id": question.id, "question_hash": question_hash(question),
                        "video": Path(question.video).name, "types": list(question.group), "label": question.answer,
                        "num_options": len(question.options), "selector": selector, "selector_hash": f"of {selector}",
                        "budget": budget, "frames": list(frames)[:budget], **row,
                    }
                )  # fmt: skip
    return write(path, rows)


def video(question: Question, num_frames: int = SECONDS) -> Video:
    return Video(question.video, "key", num_frames, 56, 56)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_exported_is_imported(
    asked: tuple[Path, list[Question]], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, questions = asked
    out = tmp_path / ("frames.jsonl" if form == "jsonl" else "frames.json")
    given = [str(predictions(tmp_path / "predictions.jsonl", questions)), "--selector=aks", "--frames=4"]
    options = ["--annotations", str(annotations), f"--videos={tmp_path}", f"--form={form}", f"--out={out}"]
    assert run(["frames", *given, *options]) == 0
    [selector] = selectors(f"file:{out}")
    assert (selector.name, selector.learns, selector.asks) == (f"file:{out.name}", False, "nothing")
    file = selector.file
    assert file is not None and f"{out} (hash {file.hash})" in capsys.readouterr().out
    refused = questions.pop(1)
    file.check(questions, [4])
    found = [file.choose(question, video(question), 4) for question in questions]
    assert found == [CHOICES[place % len(CHOICES)] for place in range(len(questions) + 1) if place != 1]
    if form == "jsonl":
        with pytest.raises(QuestionError, match="too long"):
            file.choose(refused, video(refused), 4)
    else:
        with pytest.raises(UserError, match=f"lists no frames for {refused.id}"):
            file.check([refused], [4])


def test_the_forms_are_those_of_others(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AKS's has the benchmark's rows and counts the video's own frames, BOLT's has seconds by the videos' names."""
    rows = json.loads((DATA / "videomme.json").read_text())[:3]
    annotations = tmp_path / "videomme.json"
    annotations.write_text(json.dumps(rows))
    questions = read_questions(annotations)
    shutil.copy(clip, questions[0].video)
    given = ["frames", str(predictions(tmp_path / "predictions.jsonl", questions)), "--selector=aks", "--frames=4"]
    given += ["--annotations", str(annotations), f"--videos={tmp_path}"]
    assert run([*given, "--form=aks", f"--out={tmp_path / 'aks.json'}"]) == 0
    assert "1 questions could not be asked and are left out: 001-2" in capsys.readouterr().out
    numbers = [[frame * FPS for frame in CHOICES[place]] for place in (0, 2)]
    assert json.loads((tmp_path / "aks.json").read_text()) == [
        rows[place] | {"frame_idx": listed} for place, listed in zip((0, 2), numbers, strict=True)
    ]
    assert run([*given, "--form=bolt", f"--out={tmp_path / 'bolt.json'}"]) == 0
    entries = [
        {"question_id": rows[place]["question_id"], "question": rows[place]["question"], "frames": list(CHOICES[place])}
        for place in (0, 2)
    ]
    assert json.loads((tmp_path / "bolt.json").read_text()) == {rows[0]["videoID"]: entries}


def test_numbers_are_of_the_frame_on_screen(tmp_path: Path) -> None:
    """In a video whose frames last unevenly, and in one at 29.97 frames a second where AKS counts in steps of 29."""
    uneven = write_video(tmp_path / "a.mp4", [0, 0.4, 2.6, 2.8, 3.4])
    ntsc = write_video(tmp_path / "b.mp4", np.arange(900) * 1001 / 30000, height=32, width=32)
    row = {"id": "q", "video": str(uneven), "question": "What?", "options": ["one", "two"], "answer": "A"}
    rows = [row | {"frame_idx": [3.0, 0]}, row | {"id": "n", "video": str(ntsc), "frame_idx": [29 * 20, 29 * 30]}]
    (tmp_path / "aks.json").write_text(json.dumps(rows))
    one, other = read_questions(tmp_path / "aks.json")
    file = FrameFile(tmp_path / "aks.json")
    assert file.choose(one, video(one, 4), 2) == (0, 3)
    assert file.choose(other, video(other, 31), 2) == (19, 29)
    (tmp_path / "aks.json").write_text(json.dumps([row | {"frame_idx": [0, 5]}]))
    with pytest.raises(UserError, match=r"row 1: question q has frame 5, beyond the end of .*a.mp4 \(5\)"):
        FrameFile(tmp_path / "aks.json").choose(one, video(one, 4), 2)


Ask = Callable[..., tuple[int, ...]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """The frames that a file of such lines has for question q, in a video of 60 seconds at a budget of 4."""
    question = Question("q", "a.mp4", "What?", ("one", "two"), "A")

    def of(*rows: dict[str, Any], num_frames: int = 60, budget: int = 4, **changes: Any) -> tuple[int, ...]:
        path = tmp_path / "frames.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file, about = FrameFile(path), replace(question, **changes)
        file.check([about], [budget])
        return file.choose(about, video(about, num_frames), budget)

    return of


def test_seconds_are_the_nearest_candidates(ask: Ask) -> None:
    assert ask({"question_id": "q", "seconds": [59.9, 1.4, 1.6, 0]}) == (0, 1, 2, 59)
    assert ask({"question_id": "q", "seconds": [0, 1, 2]}, num_frames=4) == (0, 1, 2), (
        "3.2 seconds, of which others see 3"
    )
    rows = [{"question_id": "q", "seconds": [*range(budget)], "budget": budget} for budget in (2, 4)]
    assert (ask(*rows, budget=2), ask(*rows)) == ((0, 1), (0, 1, 2, 3))
    known = question_hash(Question("q", "a", "What?", ("one", "two"), "A"))
    same = {"question_id": "q", "seconds": [5, 6, 7, 8], "question_hash": known}
    assert ask(same, same) == (5, 6, 7, 8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": "other", "seconds": [1, 2, 3, 4]}], r"frames.jsonl: lists no frames for q \(4 frames\)"),
        ([{"question_id": "q", "seconds": [1, 2, 3]}], "line 1: question q has 3 frames, fewer than 4"),
        ([{"question_id": "q", "seconds": []}], "line 1: question q has 0 frames, fewer than 4"),
        ([{"question_id": "q", "seconds": [1, 2, 3, 4, 5]}], "question q has 5 frames, more than --frames=4"),
        ([{"question_id": "q", "seconds": [1, 2, 3, 60]}], r"question q has frame 60, beyond the end of a.mp4 \(60\)"),
        ([{"question_id": "q", "seconds": [1, 2, 3, "four"]}], r'line 1: seconds: \[1, 2, 3, "four"\]; valid: a list of'),
        ([{"question_id": "q", "seconds": [1, 2, 3, -1]}], r"seconds: \[1, 2, 3, -1\]; valid"),
        ([{"question_id": "q", "seconds": [1, 2, 3, float("nan")]}], r"seconds: \[1, 2, 3, NaN\]; valid"),
        ([{"question_id": "q", "seconds": None}], "seconds: null; valid"),
        ([{"question_id": "q"}], "seconds: null; valid"),
        ([{"question_id": "q", "seconds": [1, 2, 3, 4], "budget": 8}], r"lists no frames for q \(4 frames\)"),
        ([{"question_id": "q", "seconds": [1, 2, 3, 4], "budget": "4"}], 'budget: "4"; valid'),
        ([{"question_id": "q", "seconds": [n, 2, 3, 4]} for n in (0, 1)], "line 2: question q has other frames than in line 1"),
        ([{"question_id": "q", "seconds": [1, 2, 3, 4], "question_hash": "x"}], "a question_hash that is not"),
        ([{"id": "q", "frames": [1, 2, 3, 4]}, {}], "line 1: valid: an object with question_id and seconds"),
        ([{"id": "q", "frames": [1, 2, 3, 4]}], "no known form of chosen frames"),
    ],
)  # fmt: skip
def test_a_list_that_is_not_as_it_should_be(ask: Ask, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(*rows)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text('{"question_id": "q", "seconds": [1]}\n{"question_id": "r", "sec')
    (tmp_path / "selected_frames.json").write_text("[[0, 29], [0, 30]]")
    for name, message in (
        ("none.jsonl", "no such file"),
        ("torn.jsonl", "line 2: is not JSON"),
        ("selected_frames.json", "no known form of chosen frames"),
    ):
        with pytest.raises(UserError, match=message):
            selectors(f"uniform,file:{tmp_path / name}")


def test_entries_of_one_video_that_ask_alike(tmp_path: Path) -> None:
    """BOLT's file knows a question by its text, and by its id where two of a video ask alike."""
    (tmp_path / "bolt.json").write_text(json.dumps({"a": [
        {"question_id": "q1", "question": "What?", "frames": [1.0, 2.0]},
        {"question_id": "q2", "question": "What?", "frames": [3.0, 4.0]},
        {"question_id": "a.mp4", "question": "Where?", "frames": [5.0, 6.0]},
    ]}))  # fmt: skip
    file = FrameFile(tmp_path / "bolt.json")
    asked = Question("q2", "/videos/a.mp4", "What?", ("one", "two"), "A")
    assert file.choose(asked, video(asked, 60), 2) == (3, 4)
    assert file.choose(replace(asked, id="b-3", question="Where?\n"), video(asked, 60), 2) == (5, 6)
    with pytest.raises(UserError, match="entry 2: question q3 has other frames than in video a, entry 1"):
        file.check([replace(asked, id="q3")], [2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames=4"], "--selector=: valid, of .*: aks, uniform"),
        (["--selector=topk"], "--selector=topk: valid, of"),
        (["--selector=aks", "--frames=8"], "--frames=8: valid, of .*: 2, 4"),
        (["--selector=aks", "--form=srt"], "--form=srt: valid: jsonl, aks, bolt"),
        (["--selector=aks", "--form=bolt", "--out=frames.json"], r"valid, of .*: 2, 4 \(--form=jsonl takes several"),
        (["--selector=aks", "--form=bolt", "--frames=4", "--out=frames.json"], "needs --annotations, as"),
        (["--selector=aks", "--form=aks", "--frames=4", "--out=frames.json"], "needs --annotations and --videos"),
        (["--selector=aks", "--form=aks"], "--out=.*frames.jsonl: valid: a name that ends in .json"),
    ],
)
def test_exports_that_cannot_be(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = predictions(tmp_path / "predictions.jsonl", read_questions(DATA / "videomme.json")[:3])
    assert run(["frames", str(path), f"--out={tmp_path / 'frames.jsonl'}", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "frames.jsonl").exists()


def test_annotations_of_other_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = predictions(tmp_path / "predictions.jsonl", read_questions(DATA / "videomme.json")[:3])
    given = ["--selector=aks", "--frames=4", "--form=bolt", f"--out={tmp_path / 'frames.json'}"]
    assert run(["frames", str(path), *given, "--annotations", str(DATA / "mlvu_4_count.json")]) == 2
    assert "holds replies to other questions than" in capsys.readouterr().err
