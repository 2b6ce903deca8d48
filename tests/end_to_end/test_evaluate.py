"""`msjoe evaluate` on a benchmark's own rows: killed, interrupted, gone on with, and equal to one that nobody disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from actors.config import SelectorConfig
from cluster.config import Config
from services.questions import read_questions
from services.scoring import read_predictions
from services.selection import RULES
from tests.end_to_end.test_command import msjoe

DATA = Path(__file__).parents[1] / "data" / "questions"
NETWORK = next(kind for kind in get_args(SelectorConfig.model_fields["kind"].annotation) if kind not in RULES)
SELECTORS = [NETWORK, *RULES, "topk@queries"]
BUDGETS = [2, 4]
QUESTIONS = 4


@dataclass(frozen=True)
class Evaluations:
    """Folders of results, and what was printed."""

    whole: Path
    disturbed: Path
    command: list[object]
    known: list[int]
    """Samples known after the kill, and after the interruption."""
    page: str


def stopped(command: list[object], samples: Path, count: int, number: signal.Signals) -> int:
    """The exit code of a command that gets a signal as soon as `samples` has `count` lines."""
    line = [sys.executable, "-m", "cluster.cli", *map(str, command)]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a suite in the background ignores
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=heed)
    deadline = time.monotonic() + 1500
    try:
        while not samples.exists() or samples.read_bytes().count(b"\n") < count:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(120)
    finally:
        if number == signal.SIGKILL or process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def evaluations(toy_config: Config, toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    """Rows of VideoMME with videos of the toy world in place of their own, answered from the frames of all selectors."""
    assert toy_config.data.questions is not None
    folder = tmp_path_factory.mktemp("evaluations")
    made = sorted((toy_config.data.questions.parent / "videos").glob("train-*.mp4"))
    rows = json.loads((DATA / "videomme.json").read_text())[:QUESTIONS]
    rows[1] |= {"question": "what is seen " * 300}
    (folder / "videomme.json").write_text(json.dumps(rows))
    (folder / "data").mkdir()
    for place, name in enumerate(dict.fromkeys(row["videoID"] for row in rows)):
        shutil.copy(made[place], folder / "data" / f"{name}.mp4")
    command: list[object] = ["evaluate", "--benchmark=videomme", "--annotations", folder / "videomme.json"]
    command += [f"--videos={folder}", f"--selector={','.join(SELECTORS)}", f"--frames={','.join(map(str, BUDGETS))}"]
    command += [*toy_overrides, "--rollout.max_num_seqs=1"]  # so that it takes long enough to be stopped
    whole, disturbed = folder / "whole", folder / "disturbed"
    done = msjoe(*command, f"--out={whole}")
    assert done.returncode == 0, done.stderr

    samples, known = disturbed / "samples.jsonl", []
    total = QUESTIONS * len(SELECTORS) * len(BUDGETS)
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        count = (known[-1] if known else 0) + 3
        assert stopped([*command, f"--out={disturbed}"], samples, count, number) == code
        known.append(samples.read_bytes().count(b"\n"))
        assert known[-1] < total and not (disturbed / "predictions.jsonl").exists()
    again = msjoe(*command, f"--out={disturbed}")
    assert again.returncode == 0, again.stderr
    assert f"{known[-1]} of {total} samples are known; asking {total - known[-1]}" in again.stdout
    return Evaluations(whole, disturbed, command, known, done.stdout)


def test_an_evaluation_goes_on_as_if_it_had_never_stopped(evaluations: Evaluations) -> None:
    assert 3 <= evaluations.known[0] < evaluations.known[1]
    for name in ("predictions.jsonl", "scores.json", "report.html"):
        assert (evaluations.disturbed / name).read_bytes() == (evaluations.whole / name).read_bytes()
    keys = [json.loads(line)["key"] for line in (evaluations.disturbed / "samples.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == QUESTIONS * len(SELECTORS) * len(BUDGETS)


def test_every_selector_answers_at_every_budget(evaluations: Evaluations) -> None:
    rows = read_predictions(evaluations.whole / "predictions.jsonl")
    assert [(row.budget, row.selector) for row in rows[::QUESTIONS]] == [
        (k, name) for k in BUDGETS for name in SELECTORS
    ]
    refused = [row for row in rows if row.reply is None]
    assert {row.question_id for row in refused} == {"001-2"} and len(refused) == len(SELECTORS) * len(BUDGETS)
    assert all("refuses the prompt" in row.reason for row in refused)
    asked = [row for row in rows if row.reply is not None]
    assert all(1 <= len(row.frames) <= row.budget and row.visual_tokens for row in asked)
    assert len({tuple(row.frames) for row in asked}) > len(BUDGETS) * 2
    by_question = [row for row in asked if row.selector in ("topk", "topk@queries")]
    assert {len(row.queries) for row in by_question if row.selector == "topk"} == {1}
    assert any(row.queries not in ([], by_question[0].queries) for row in by_question if row.selector != "topk")


def test_what_is_known_starts_nothing(evaluations: Evaluations) -> None:
    """Also of another form of the command: one selector, and the budgets the other way round."""
    for changes in ([], ["--selector=uniform", "--frames=4,2"]):
        done = msjoe(*evaluations.command, *changes, f"--out={evaluations.disturbed}")
        assert done.returncode == 0 and "asking 0" in done.stdout and "placing actors" not in done.stdout
    scored = msjoe("score", evaluations.whole / "predictions.jsonl", f"--out={evaluations.whole / 'again.json'}")
    assert scored.returncode == 0
    assert (evaluations.whole / "again.json").read_text() == (evaluations.whole / "scores.json").read_text()


def test_results_of_other_questions_are_not_written_over(evaluations: Evaluations, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(Path(str(evaluations.command[3])).read_text())
    rows[0]["question"] = "What is it?"
    (tmp_path / "videomme.json").write_text(json.dumps(rows))
    other = [
        *evaluations.command[:3],
        tmp_path / "videomme.json",
        *evaluations.command[4:],
        f"--out={evaluations.whole}",
    ]
    refused = msjoe(*other)
    assert refused.returncode == 2 and "holds replies to other questions than" in refused.stderr


def test_frames_carried_elsewhere_and_back_give_the_same_answers(evaluations: Evaluations, tmp_path: Path) -> None:
    predictions, names = evaluations.whole / "predictions.jsonl", (NETWORK, "bolt")
    for name in names:
        done = msjoe("frames", predictions, f"--selector={name}", f"--out={tmp_path / name}.jsonl")
        assert done.returncode == 0, done.stderr
    given = f"--selector={','.join(f'file:{tmp_path / name}.jsonl' for name in names)}"
    done = msjoe(*evaluations.command, given, f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr

    def answers(path: Path, name: str) -> list[tuple[object, ...]]:
        rows = [row for row in read_predictions(path) if row.selector == name]
        return [(row.question_id, row.budget, row.frames, row.visual_tokens, row.reply, row.reason) for row in rows]

    for name in names:
        back = answers(tmp_path / "out" / "predictions.jsonl", f"file:{name}.jsonl")
        assert back == answers(predictions, name) and len(back) == QUESTIONS * len(BUDGETS)
    assert "file:bolt.jsonl" in done.stdout and "file:bolt.jsonl" in (tmp_path / "out" / "report.html").read_text()

    file = tmp_path / "bolt.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["seconds"] = rows[0]["seconds"][:1]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = msjoe(*evaluations.command, given, f"--out={tmp_path / 'out'}")
    assert refused.returncode == 2 and "has 1 frames, fewer than 2" in refused.stderr
    assert "placing actors" not in refused.stdout


def test_evidence_without_an_mllm(toy_config: Config, toy_overrides: list[str], tmp_path: Path) -> None:
    questions = toy_config.data.questions
    assert questions is not None
    command: list[object] = ["evaluate", "--evidence", "--benchmark=training", "--annotations", questions]
    command += [f"--videos={questions.parent}", f"--selector={','.join([NETWORK, *RULES])}", "--frames=4,8"]
    done = msjoe(*command, *toy_overrides, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "evidence.jsonl").read_text().splitlines()]
    asked = {question.id: question for question in read_questions(questions)}
    assert len(rows) == len(asked) * (1 + len(RULES)) * 2
    for row in rows:
        seen = {tenth for frame in row["frames"] for tenth in range(10 * frame - 5, 10 * frame + 6)}
        moments = asked[row["question_id"]].moments
        met = [any(seen & set(range(round(10 * a), round(10 * b) + 1)) for a, b in spans) for spans in moments]
        assert row["recall"] == sum(met) / len(met), row
        assert 1 <= len(row["frames"]) <= row["budget"]
    assert len({tuple(row["frames"]) for row in rows if row["question_id"] == rows[0]["question_id"]}) > 6
    assert "Recall over frames" in (tmp_path / "evidence.html").read_text()
