"""What can be known to fail is said before any actor starts."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from actors.config import PromptConfig
from cluster.checks import check_inputs
from cluster.cli import TOY
from cluster.config import Config, TrainConfig, load_config
from cluster.questions.left_out import Losses, settle_subtitles
from cluster.questions.stream import Ledger, QuestionStream, load_questions
from cluster.resolve import resolve
from cluster.toyworld import MODELS
from cluster.training.train import collect_step
from services.errors import UserError
from services.metrics.wandb import WandB
from services.schema import Group, LeftOut, Question


def with_model(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"policy": config.policy.model_copy(update={"model": str(folder)})})


@pytest.fixture
def mllm(toy_config: Config, tmp_path: Path) -> Path:
    """A copy of the toy MLLM, to be damaged."""
    return Path(shutil.copytree(toy_config.policy.model, tmp_path / "mllm"))


def test_a_whole_model_passes(toy_config: Config) -> None:
    check_inputs(toy_config)


def test_a_reward_function_that_is_not_there(toy_config: Config) -> None:
    rewards = toy_config.rewards.model_copy(update={"extra": ("missing.py:f",)})
    with pytest.raises(UserError, match="rewards.extra: missing.py: no such file"):
        check_inputs(toy_config.model_copy(update={"rewards": rewards}))


def test_a_loss_of_ones_own_is_tried_and_found_from_any_folder(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choosing(loss: str) -> Config:
        return toy_config.model_copy(update={"policy": toy_config.policy.model_copy(update={"loss": loss})})

    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def halved(log_ratio_L, advantage_L, lengths, config):\n    return 0.5 * log_ratio_L\n")
    assert resolve(choosing("gspo"), None).policy.loss == "gspo"
    resolved = resolve(choosing("mine.py:halved"), None)
    assert resolved.policy.loss == f"{tmp_path}/mine.py:halved"
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match="policy.loss: .*mine.py:halved failed: ValueError: too many values"):
        check_inputs(resolved)


def test_a_tracker_whose_package_is_not_installed(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WandB, "package", "no_such_package")
    train = toy_config.train.model_copy(update={"trackers": ("tensorboard", "wandb")})
    with pytest.raises(UserError, match="train.trackers: wandb needs the Python package no_such_package"):
        check_inputs(toy_config.model_copy(update={"train": train}))


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("processor_config.json", "lacks a processor"),
        ("config.json", "lacks the model's config"),
        ("tokenizer.json", "lacks a tokenizer"),
        ("model.safetensors", "lacks weights"),
        ("chat_template.jinja", "lacks a chat template"),
    ],
)
def test_a_model_folder_that_lacks_something(file: str, what: str, mllm: Path, toy_config: Config) -> None:
    (mllm / file).unlink()
    with pytest.raises(UserError, match=f"policy.model: .*{what}"):
        check_inputs(with_model(toy_config, mllm))


@pytest.mark.parametrize(
    ("dtype", "num_gpus", "flags", "used"),
    [
        ("auto", 0, "fpu avx2 avx512f", "float32"),
        ("auto", 0, "fpu avx512f avx512_bf16", "bfloat16"),
        ("auto", 0, None, "float32"),
        ("auto", 0.5, "fpu", "bfloat16"),
        ("float32", 1, "amx_bf16", "float32"),
    ],
)
def test_clip_computes_in_bfloat16_where_it_pays(
    dtype: str, num_gpus: float, flags: str | None, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr("cluster.resolve.CPUINFO", cpuinfo)
    if flags is not None:
        cpuinfo.write_text(f"flags\t\t: {flags}\n")
    config = load_config(TOY, [f"--embedder.dtype={dtype}", f"--embedder.num_gpus={num_gpus}"])
    assert resolve(config, None).embedder.dtype == used


def test_a_model_nobody_named_stays_unnamed() -> None:
    """`msjoe prepare` with a CLIP alone needs no MLLM, and must not take the current folder for one."""
    config = resolve(load_config(TOY, []).model_copy(update={"toyworld": None}), None)
    assert (config.policy.model, config.embedder.model) == ("", "")
    check_inputs(config)


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


def test_workers_that_cannot_share_the_heads(toy_config: Config) -> None:
    rollout = toy_config.rollout.model_copy(update={"tensor_parallel": 3})
    with pytest.raises(UserError, match="rollout.tensor_parallel=3: must divide the model's 4 attention heads"):
        check_inputs(toy_config.model_copy(update={"rollout": rollout}))


def test_another_kind_of_model(mllm: Path, toy_config: Config) -> None:
    shape = json.loads((mllm / "config.json").read_text())
    (mllm / "config.json").write_text(json.dumps(shape | {"model_type": "llama"}))
    with pytest.raises(UserError, match="is a llama"):
        check_inputs(with_model(toy_config, mllm))


def test_a_clip_folder_without_a_config(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config.model_copy(update={"embedder": toy_config.embedder.model_copy(update={"model": str(tmp_path)})})
    with pytest.raises(UserError, match=r"embedder.model: .* has no open_clip_config.json"):
        check_inputs(config)


def test_a_clip_whose_embeddings_the_sampler_does_not_take(toy_config: Config) -> None:
    for width in (64, 768):
        sampler = toy_config.sampler.model_copy(update={"width": width})
        config = toy_config.model_copy(update={"sampler": sampler})
        check_inputs(config)
        tspo = config.model_copy(update={"selector": config.selector.model_copy(update={"kind": "tspo"})})
        if width == 64:
            check_inputs(tspo)
        else:
            with pytest.raises(
                UserError, match="sampler.width: 768, but embedder.model embeds in 64 dimensions; set 64"
            ):
                check_inputs(tspo)


def test_paths_become_absolute(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toy_config.data.questions is not None
    monkeypatch.chdir(toy_config.data.questions.parent)
    relative = toy_config.model_copy(
        update={"data": toy_config.data.model_copy(update={"questions": Path("train.jsonl")})}
    )
    assert resolve(relative, None).data.questions == toy_config.data.questions
    monkeypatch.chdir(MODELS)
    assert resolve(with_model(toy_config, Path("mllm")), None).policy.model == toy_config.policy.model


@pytest.mark.parametrize(
    ("rates", "objective", "bounds", "found"),
    [
        ([0.5, None], "difficulty", {}, "missing for 1, such as q1"),
        ([0.5, None], "joint", {"max_pass_rate": 0.9}, "max_pass_rate needs every question's pass_rate; missing for 1"),
        ([1.0, 1.0], "difficulty", {}, "nor below the 1 that leaves stage 1 nothing to learn; theirs are 1…1"),
        ([0.5, 1.0], "joint", {"max_pass_rate": 0.25}, "no question has a pass_rate in 0…0.25; theirs are 0.5…1"),
        ([0.0, 0.5, 1.0], "difficulty", {}, ["q0", "q1"]),
        ([0.0, 0.5, 0.75, 1.0], "joint", {"min_pass_rate": 0.25, "max_pass_rate": 0.75}, ["q1", "q2"]),
        ([None, 1.0], "joint", {}, ["q0", "q1"]),
    ],
)
def test_questions_are_chosen_by_pass_rate(
    rates: list[float | None], objective: str, bounds: dict, found: object, toy_config: Config, tmp_path: Path
) -> None:
    row = {"video": "v.mp4", "question": "?", "options": ["x", "y"], "answer": "A"}
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row | {"id": f"q{i}", "pass_rate": c}) + "\n" for i, c in enumerate(rates)))
    config = toy_config.model_copy(
        update={
            "data": toy_config.data.model_copy(update={"questions": questions} | bounds),
            "sampler": toy_config.sampler.model_copy(update={"objective": objective}),
        }
    )
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            load_questions(config)
    else:
        assert [question.id for question in load_questions(config)] == found


def question(name: str) -> Question:
    return Question(name, f"/{name}.mp4", "?", ("x", "y"), "A")


def names(questions: list[Question]) -> str:
    return "".join(one.id for one in questions)


def test_questions_come_epoch_by_epoch_in_an_order_of_the_seed() -> None:
    questions = [question(str(index)) for index in range(7)]
    stream, again, other = (QuestionStream(questions, seed) for seed in (0, 0, 1))
    drawn = [names(stream.take(3)) for _ in range(70)]
    assert all(len(set(batch)) == 3 for batch in drawn)
    everything = "".join(drawn)
    assert all(everything.count(name) == 30 for name in "0123456"), "every epoch holds every question once"
    assert [names(again.take(3)) for _ in range(70)] == drawn
    assert [names(other.take(3)) for _ in range(70)] != drawn


def test_questions_already_taken_are_passed_over_and_come_later() -> None:
    stream = QuestionStream([question(name) for name in "abcd"], seed=0)
    first = stream.take(3)
    (fourth,) = stream.take(3, first)
    assert {*names(first), fourth.id} == set("abcd")
    assert stream.take(1, [*first, fourth]) == []
    assert set(names(stream.take(4))) == set("abcd")


def learn(stream: QuestionStream, steps: range) -> list[str]:
    """The questions of these steps, three each; in step 5 one turns out that cannot be asked."""
    batches = []
    for step in steps:
        batch = stream.take(3)
        if step == 5:
            stream.leave_out(batch[:1])
        stream.settle(batch[1:] if step == 5 else batch)
        batches.append(names(batch))
    return batches


@pytest.mark.parametrize("killed_at", range(0, 20, 3))
def test_a_stream_goes_on_from_its_ledger_without_losing_or_repeating_a_question(killed_at: int) -> None:
    questions = [question(name) for name in "abcdefg"]
    undisturbed = learn(QuestionStream(questions, seed=0), range(20))
    stream = QuestionStream(questions, seed=0)
    before = learn(stream, range(killed_at))
    ledger = stream.ledger()
    stream.take(3)
    assert stream.ledger() == ledger, "what is in flight is not settled"
    saved = json.loads(json.dumps(asdict(ledger)))
    after = learn(QuestionStream(questions, 0, Ledger(**saved)), range(killed_at, 20))
    assert before + after == undisturbed


def test_a_question_that_is_slow_holds_the_frontier_and_no_other_question() -> None:
    stream = QuestionStream([question(name) for name in "abcdefg"], seed=0)
    slow, *quick = stream.take(7)
    stream.settle(quick)
    assert stream.ledger() == Ledger(0, (1, 2, 3, 4, 5, 6))
    stream.settle([slow])
    assert stream.ledger() == Ledger(7)


def test_fewer_questions_than_a_batch() -> None:
    stream = QuestionStream([question("a"), question("b")], seed=0)
    assert sorted(names(stream.take(8))) == ["a", "b"]


class Asked:
    """Stands in for a fleet: groups with a signal for some questions, none for those that cannot be asked."""

    def __init__(self, bad: str, folder: Path, refills: int = 0) -> None:
        self.bad, self.asked = bad, ""
        self.stream = QuestionStream([question(name) for name in "abcde"], seed=0)
        self.losses = Losses(folder, Console(quiet=True))
        self.config = TrainConfig(questions_per_step=2, refills=refills)

    async def collect(
        self, questions: Sequence[Question], group_size: int, draws: int, step: int
    ) -> tuple[list[Group], list[LeftOut]]:
        self.asked += names(list(questions))
        groups = [SimpleNamespace(question=q, has_signal=q.id in "ad") for q in questions if q.id not in self.bad]
        return groups, [LeftOut(q, "too long") for q in questions if q.id in self.bad]  # type: ignore[return-value]

    def step(self) -> list[Group]:
        return asyncio.run(collect_step(self.collect, self.stream, self.config, self.losses, step=1))


def test_the_place_of_a_question_that_cannot_be_asked_is_filled(tmp_path: Path) -> None:
    fleet = Asked(bad="bde", folder=tmp_path)
    assert [sorted(names([group.question for group in fleet.step()])) for _ in range(3)] == [["a", "c"]] * 3
    assert all(fleet.asked.count(name) == 1 for name in "bde"), "none is asked again"
    assert fleet.losses.questions == 3
    written = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert sorted(row["question_id"] for row in written) == ["b", "d", "e"]
    with pytest.raises(UserError, match="no question is left: none can be asked"):
        Asked(bad="abcde", folder=tmp_path).step()


def test_groups_without_signal_are_made_up_for_by_other_questions(tmp_path: Path) -> None:
    def step(refills: int) -> list[Group]:
        return Asked("", tmp_path, refills).step()

    assert len(step(0)) == 2
    groups = step(9)
    assert sum(group.has_signal for group in groups) == 2
    together = [group.question.id for group in groups]
    assert len(set(together)) == len(together), "no question twice in a step"
    assert len(step(1)) <= 4


def test_no_question_left(tmp_path: Path) -> None:
    losses, reasons = Losses(tmp_path, Console(quiet=True)), {"/a.mp4": "is empty"}
    turns: Any = None  # who asks is not needed for a bad video
    with pytest.raises(UserError, match="no question is left"):
        asyncio.run(losses.sift([question("a")], reasons, turns, PromptConfig()))


@pytest.mark.parametrize(("choice", "asked"), [("drop", ["a", "b", "c"]), ("leave_out", ["b", "c"])])
def test_unreadable_subtitles_cost_themselves_or_their_question(choice: str, asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.srt").write_text("no times")
    (tmp_path / "good.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    questions = [
        replace(question("a"), subtitles=str(tmp_path / "bad.srt")),
        replace(question("b"), subtitles=str(tmp_path / "good.srt")),
        question("c"),
    ]
    kept, lost = settle_subtitles(questions, PromptConfig(subtitles=True, unreadable_subtitles=choice))
    assert [one.id for one in kept] == asked
    assert [one.subtitles is not None for one in kept] == [one.id == "b" for one in kept]
    assert [loss.question for loss in lost] == questions[:1]
    assert "before the first line of times" in lost[0].reason
    assert settle_subtitles(questions, PromptConfig()) == (questions, []), "nobody reads them"
