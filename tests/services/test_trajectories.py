"""Trajectories on disk: every one is there, few carry similarity rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from services.schema import Group, Question, Reward, Selection, Trajectory, Turn, VisualInput
from services.trajectories import read_trajectories, write_trajectories


def make_turn(text: str, version: int, frames: tuple[int, ...]) -> Turn:
    ids = np.zeros(2, np.int32)
    visual = VisualInput(video="abc123", frames=frames, num_frames=6, height=28, width=56)
    return Turn(ids, ids, np.zeros(2, np.float32), text, truncated=False, version=version, visual=visual)


def make_group(question_id: str, size: int = 2) -> Group:
    question = Question(question_id, "/videos/a.mp4", "Which colour?\nLook well.", ("red", "“blue”"), "B")
    selection = Selection(
        frames=(1, 4),
        draw=(4, 1),
        log_prob=-2.5,
        entropy=1.7,
        similarity=np.linspace(0.1, 0.3, 12, dtype=np.float32).reshape(2, 6),
        version=7,
    )
    trajectories = tuple(
        Trajectory(
            question_id,
            index,
            index,
            make_turn("<query>a ball</query>\u2028<query>a wall</query>", 3, (0, 5)),
            ("a ball", "a wall"),
            False,
            selection,
            make_turn("no idea", 4, selection.frames),
            letter=None,
            reward=Reward({"accuracy": 0.0, "format": 0.0, "info": 0.05}),
        )
        for index in range(size)
    )
    return Group(question, trajectories)


def test_a_trajectory_comes_back(tmp_path: Path) -> None:
    write_trajectories(tmp_path, 5, [make_group("q0", size=1)])
    (row,) = read_trajectories(tmp_path)
    similarity = row.pop("similarity")
    assert row == {
        "step": 5,
        "question_id": "q0",
        "question": "Which colour?\nLook well.",
        "options": ["red", "“blue”"],
        "answer": "B",
        "index": 0,
        "query_index": 0,
        "video": "/videos/a.mp4",
        "video_key": "abc123",
        "num_frames": 6,
        "query_reply": "<query>a ball</query>\u2028<query>a wall</query>",
        "queries": ["a ball", "a wall"],
        "frames": [1, 4],
        "answer_reply": "no idea",
        "letter": None,
        "reward": {"total": 0.05, "accuracy": 0.0, "format": 0.0, "info": 0.05},
        "versions": {"query": 3, "sampler": 7, "answer": 4},
    }
    assert similarity == np.round(np.linspace(0.1, 0.3, 12), 4).reshape(2, 6).tolist()


def test_few_trajectories_carry_similarity_rows(tmp_path: Path) -> None:
    write_trajectories(tmp_path, 1, [make_group(name) for name in ("q2", "q0", "q1")], similarity_questions=2)
    rows = list(read_trajectories(tmp_path))
    assert [(row["question_id"], row["index"]) for row in rows] == [(q, i) for q in ("q2", "q0", "q1") for i in (0, 1)]
    detailed = [(row["question_id"], row["index"]) for row in rows if row["similarity"] is not None]
    assert detailed == [("q0", 0), ("q1", 0)]


def test_steps_append_and_an_empty_group_writes_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        write_trajectories(tmp_path, step, [make_group("q0", size=1), make_group("q1", size=0)])
    assert [row["step"] for row in read_trajectories(tmp_path)] == [1, 2]
