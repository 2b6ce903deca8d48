"""What can be known to fail is said before any actor starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from cluster.checks import check_inputs, load_questions, resolve
from cluster.config import ClusterConfig, Config
from cluster.fleet import connect
from cluster.train import leave_out, question_batches
from services.errors import UserError
from services.schema import Question


def with_model(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"policy": config.policy.model_copy(update={"model": str(folder)})})


@pytest.fixture
def mllm(toy_config: Config, tmp_path: Path) -> Path:
    """A copy of the toy MLLM, to be damaged."""
    return Path(shutil.copytree(toy_config.policy.model, tmp_path / "mllm"))


def test_a_whole_model_passes(toy_config: Config) -> None:
    check_inputs(toy_config)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("processor_config.json", "lacks a processor"),
        ("config.json", "lacks the model's config"),
        ("tokenizer.json", "lacks a tokenizer"),
        ("model.safetensors", "lacks weights"),
    ],
)
def test_a_model_folder_that_lacks_something(file: str, what: str, mllm: Path, toy_config: Config) -> None:
    (mllm / file).unlink()
    with pytest.raises(UserError, match=f"policy.model: .*{what}"):
        check_inputs(with_model(toy_config, mllm))


def test_heads_the_cpu_engine_cannot_run(mllm: Path, toy_config: Config) -> None:
    shape = json.loads((mllm / "config.json").read_text())
    text = shape["text_config"]
    text["num_attention_heads"] *= 2
    text.pop("head_dim", None)
    (mllm / "config.json").write_text(json.dumps(shape))
    with pytest.raises(UserError, match="attention heads of 16; the CPU engine takes multiples of 32"):
        check_inputs(with_model(toy_config, mllm))
    on_gpu = toy_config.model_copy(update={"rollout": toy_config.rollout.model_copy(update={"num_gpus": 1})})
    check_inputs(with_model(on_gpu, mllm))


def test_another_kind_of_model(mllm: Path, toy_config: Config) -> None:
    shape = json.loads((mllm / "config.json").read_text())
    (mllm / "config.json").write_text(json.dumps(shape | {"model_type": "llama"}))
    with pytest.raises(UserError, match="is a llama"):
        check_inputs(with_model(toy_config, mllm))


def test_a_clip_folder_without_a_config(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config.model_copy(update={"embedder": toy_config.embedder.model_copy(update={"model": str(tmp_path)})})
    with pytest.raises(UserError, match=r"embedder.model: .* has no open_clip_config.json"):
        check_inputs(config)


def test_paths_become_absolute(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toy_config.data.questions is not None
    monkeypatch.chdir(toy_config.data.questions.parent)
    relative = toy_config.model_copy(
        update={"data": toy_config.data.model_copy(update={"questions": Path("questions.jsonl")})}
    )
    assert resolve(with_model(relative, Path("mllm")), None).policy.model == toy_config.policy.model
    assert resolve(relative, None).data.questions == toy_config.data.questions


@pytest.mark.parametrize(
    ("rates", "message"),
    [([0.5, None], "missing for 1, such as q1"), ([1.0, 1.0], "every question has pass_rate 1")],
)
def test_stage_1_needs_pass_rates(rates: list[float | None], message: str, toy_config: Config, tmp_path: Path) -> None:
    row = {"video": "v.mp4", "question": "?", "options": ["x", "y"], "answer": "A"}
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row | {"id": f"q{i}", "pass_rate": c}) + "\n" for i, c in enumerate(rates)))
    config = toy_config.model_copy(
        update={
            "data": toy_config.data.model_copy(update={"questions": questions}),
            "sampler": toy_config.sampler.model_copy(update={"objective": "difficulty"}),
        }
    )
    with pytest.raises(UserError, match=message):
        load_questions(config)


def question(name: str) -> Question:
    return Question(name, f"/{name}.mp4", "?", ("x", "y"), "A")


def test_batches_of_an_epoch_share_no_question() -> None:
    questions = [question(str(index)) for index in range(7)]
    batches = question_batches(questions, 3, seed=0)
    drawn = [[one.id for one in next(batches)] for _ in range(40)]
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        assert len(set(first + second)) == 6
    assert {name for batch in drawn for name in batch} == set("0123456"), "what one epoch leaves over, another takes"
    again, other = question_batches(questions, 3, seed=0), question_batches(questions, 3, seed=1)
    assert [[one.id for one in next(again)] for _ in range(40)] == drawn
    assert [[one.id for one in next(other)] for _ in range(40)] != drawn


def test_fewer_questions_than_a_batch() -> None:
    batches = question_batches([question("a"), question("b")], 8, seed=0)
    assert sorted(one.id for one in next(batches)) == ["a", "b"]


def test_a_dashboards_address_is_no_clusters() -> None:
    with pytest.raises(UserError, match="http://127.0.0.1:8265 is a dashboard: `ray job submit` to it"):
        connect(ClusterConfig(address="http://127.0.0.1:8265"))


def test_no_question_left(tmp_path: Path) -> None:
    console = Console(quiet=True)
    reasons = {"/a.mp4": "is empty"}
    assert leave_out([question("a"), question("b")], reasons, tmp_path, console) == [question("b")]
    with pytest.raises(UserError, match="no question is left"):
        leave_out([question("a")], reasons, tmp_path, console)
