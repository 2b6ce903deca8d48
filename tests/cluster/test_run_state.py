"""The state of a run: written and read back, and what a resumed run may change of its config."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cli import TOY
from cluster.config import Config, load_config
from cluster.questions.stream import Ledger
from cluster.training.run_folder import go_on_from
from cluster.training.run_state import RunState, changes, check_goes_on, read_state
from services import jsonl
from services.checkpoints import checkpoint_folder, seal
from services.errors import UserError
from services.schema import Question

QUESTIONS = [Question(name, f"/{name}.mp4", "?", ("x", "y"), "A") for name in ("a", "b\udcca", "c")]


def state_of(config: Config) -> RunState:
    return replace(
        RunState.start(config, {"data.questions": QUESTIONS}),
        step=40,
        versions={"policy": 40, "sampler": 39},
        ledger=Ledger(7, (9, 12), ("b\udcca",)),
        accuracies={"before": 0.25},
        accuracy=0.5,
        seconds=61.5,
    )


def toy(*overrides: str) -> Config:
    return load_config(TOY, overrides)


def test_a_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    state = state_of(toy())
    state.write(tmp_path)
    assert read_state(tmp_path) == state


@pytest.mark.parametrize("text", ["", "{}", '{"step": 3}', "[]"])
def test_a_folder_without_a_state_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path} is no checkpoint that a run can go on from"):
        read_state(tmp_path)


def test_what_may_change_is_shown(tmp_path: Path) -> None:
    state, other = (
        state_of(toy()),
        toy("--policy.learning_rate=1e-7", "--policy.world_size=2", "--sampler.zero_stage=2"),
    )
    check_goes_on(state, other, {"data.questions": QUESTIONS})
    assert {line.split(":")[0] for line in changes(state.config, other)} == {
        "policy.learning_rate", "policy.world_size", "sampler.zero_stage",
    }  # fmt: skip
    assert list(changes(state.config, toy())) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--train.seed=5", "train.seed: 0 before, 5 now, but it decides the order"),
        ("--train.steps=39", "train.steps: 39, but the run has done 40"),
        ("--policy.train=false", "policy: it learnt before and does not now"),
        ("--selector.kind=uniform", "sampler: it learnt before and does not now"),
    ],
)
def test_what_cannot_go_together_is_refused_by_name(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_goes_on(state_of(toy()), toy(override), {"data.questions": QUESTIONS})


def test_other_questions_are_refused() -> None:
    for others in (QUESTIONS[:2], QUESTIONS[::-1], [*QUESTIONS[:2], replace(QUESTIONS[2], id="d")]):
        with pytest.raises(UserError, match="data.questions: these are not the questions"):
            check_goes_on(state_of(toy()), toy(), {"data.questions": others})


def test_a_resume_that_is_refused_forgets_nothing(tmp_path: Path) -> None:
    with checkpoint_folder(tmp_path, 40) as partial:
        state_of(toy()).write(partial)
        seal(partial)
    jsonl.append(tmp_path / "metrics.jsonl", [{"step": 40}, {"step": 41}])

    def resume(config: Config) -> Path | None:
        given = {"data.questions": QUESTIONS}
        return go_on_from(tmp_path, None, "", lambda state: check_goes_on(state, config, given), print)

    with pytest.raises(UserError, match="train.seed: 0 before, 5 now"):
        resume(toy("--train.seed=5"))
    assert [row["step"] for row in jsonl.read(tmp_path / "metrics.jsonl")] == [40, 41]
    assert resume(toy()) == tmp_path / "checkpoints" / "step-000040"
    assert [row["step"] for row in jsonl.read(tmp_path / "metrics.jsonl")] == [40]


def test_a_run_whose_every_checkpoint_is_damaged_is_not_begun_anew(tmp_path: Path) -> None:
    said: list[str] = []

    def resume() -> Path | None:
        return go_on_from(tmp_path, None, "", lambda state: None, said.append)

    folders = []
    for step in (2, 4):
        with checkpoint_folder(tmp_path, step) as partial:
            state_of(toy()).write(partial)
            seal(partial)
        folders.append(tmp_path / "checkpoints" / f"step-{step:06d}")
        jsonl.append(tmp_path / "metrics.jsonl", [{"step": step}])
    for folder in folders:
        (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint .* is damaged \(step-000002, step-000004\); put a whole"):
        resume()
    assert [row["step"] for row in jsonl.read(tmp_path / "metrics.jsonl")] == [2, 4]
    assert [line.partition(":")[0] for line in said] == [
        f"{folder} is damaged and passed over" for folder in reversed(folders)
    ]
    for folder in folders:
        shutil.rmtree(folder)
    assert resume() is None, "without any checkpoint the run starts anew"
    assert not (tmp_path / "metrics.jsonl").exists()
