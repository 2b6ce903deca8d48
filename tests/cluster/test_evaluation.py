"""What an evaluation settles before anything starts, what its samples are keyed by, and what is kept of them."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run
from cluster.evaluation import samples as samples_module
from cluster.evaluation.evaluate import in_flight
from cluster.evaluation.samples import Keys, Sample, Samples, prediction, samples_in, settled
from cluster.evaluation.setting import Setting, budgets, loader, selectors, settle
from cluster.toyworld import MODELS
from learners.config import SamplerConfig
from learners.networks import architecture, make_network
from services.checkpoints import save_sampler, seal
from services.errors import UserError
from services.schema import Question, Video

DATA = Path(__file__).parents[1] / "data" / "questions"
VIDEO = Video("a.mp4", "key", 60, 56, 56)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with files for all videos of VideoMME's rows but one."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for row in json.loads((DATA / "videomme.json").read_text()):
        (folder / f"{row['videoID']}.mp4").write_bytes(b"a video")
    (folder / "fFjv93ACGo8.mp4").unlink()
    return folder


@pytest.fixture
def make(videos: Path, tmp_path: Path) -> Callable[..., Setting]:
    """A setting of VideoMME with the toy models, with changes."""

    def of(selector: str = "uniform", frames: str = "4,8", overrides: tuple[str, ...] = (), **changes: Any) -> Setting:
        given: dict[str, Any] = {
            "benchmark": "videomme", "annotations": [DATA / "videomme.json"], "prompt": "official", "visual_tokens": None,
            "checkpoint": None, "model": None, **changes,
        }  # fmt: skip
        cache = f"--data.cache={tmp_path / 'cache'}"
        load = loader(None, given["checkpoint"], given["model"], [cache, *overrides])
        chosen = selectors(selector), budgets(frames)
        return settle(
            given["benchmark"], given["annotations"], videos, given["prompt"], *chosen, given["visual_tokens"], load
        )

    return of


def checkpoint(folder: Path, seed: int = 0, channels: tuple[int, ...] = (16, 32, 64)) -> Path:
    """A run's folder of the toy recipe with one checkpoint, which has a sampler alone."""
    step = folder / "checkpoints" / "step-000001"
    (step / "sampler").mkdir(parents=True)
    config = SamplerConfig(channels=channels)
    save_sampler(step / "sampler", architecture("unet", config), make_network("unet", config, seed).state_dict())
    seal(step)
    (folder / "config.yaml").write_text(
        "toyworld: {}\nsampler: {channels: [16, 32, 64]}\nframes: {tokens_per_frame: 4}\n"
    )
    return folder


def test_selectors_and_what_clip_is_asked() -> None:
    found = selectors("uniform, topk@queries,unet,unet@question")
    assert [(one.kind, one.asks, one.learns) for one in found] == [
        ("uniform", "question", False),
        ("topk", "queries", False),
        ("unet", "queries", True),
        ("unet", "question", True),
    ]
    for names, message in (
        ("best", "valid: unet, tspo, uniform"),
        ("topk@all", "@queries or @question"),
        ("topk@nothing", "@queries or @question"),
        ("topk,topk", "twice"),
    ):
        with pytest.raises(UserError, match=message):
            selectors(names)
    assert [one.asks for one in selectors("unet,topk", writes_queries=False)] == ["question", "question"]
    with pytest.raises(UserError, match="written by the MLLM, which --evidence does without"):
        selectors("topk@queries", writes_queries=False)
    assert budgets("8,4") == [4, 8]
    for text in ("0", "4,4", "four", ""):
        with pytest.raises(UserError, match="whole numbers above 0"):
            budgets(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [DATA / "lvbench_video_info.meta.jsonl"]},
            "is LVBench, not VideoMME; use --benchmark=lvbench",
        ),
        ({"annotations": [DATA / "videomme.json"] * 2}, "'001-1' is already the id of a question of another file"),
        ({"frames": "4,1000"}, "max_model_len: 512 cannot hold 2000 visual tokens"),
        ({"visual_tokens": 1}, "would have 0 tokens each; valid: 1 to 4"),
        ({"model": "/nowhere/mllm"}, "/nowhere/mllm: no such model folder"),
        ({"model": str(MODELS / "clip")}, "lacks"),
        ({"checkpoint": DATA}, "is neither a run's folder nor one of its checkpoints"),
    ],
)
def test_what_cannot_be_is_said_at_once(changes: dict[str, Any], message: str, make: Callable[..., Setting]) -> None:
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_a_checkpoint_of_another_architecture(make: Callable[..., Setting], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds another network; set sampler.channels=\[8, 16\]"):
        make("unet", checkpoint=checkpoint(tmp_path / "run", channels=(8, 16)))
    with pytest.raises(UserError, match="holds another network; set selector.kind=unet"):
        make("tspo", checkpoint=checkpoint(tmp_path / "theirs"), overrides=("--sampler.width=64",))
    damaged = checkpoint(tmp_path / "damaged") / "checkpoints" / "step-000001"
    (damaged / "sampler" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        make("unet", checkpoint=damaged)
    with pytest.raises(UserError, match="has no whole checkpoint"):
        make("unet", checkpoint=tmp_path / "damaged")


def test_missing_videos_are_named(make: Callable[..., Setting]) -> None:
    setting = make()
    with pytest.raises(UserError, match=r"1 videos of 3 questions are missing:\n.*fFjv93ACGo8.mp4\n.*--skip-missing"):
        setting.without_missing(skip=False)
    assert len(setting.without_missing(skip=True)) == 24


def test_equal_visual_tokens_at_every_budget(make: Callable[..., Setting]) -> None:
    sizes = {cell.budget: cell.config.frames.tokens_per_frame for cell in make(visual_tokens=8).cells}
    assert sizes == {4: 4, 8: 2}
    assert make(visual_tokens=8).config.frames.tokens_per_frame == 4  # the cache's


def test_a_dry_run_names_missing_videos_and_writes_nothing(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    out = tmp_path / "out"
    given = ["--benchmark=videomme", "--annotations", str(DATA / "videomme.json"), f"--videos={videos}", f"--out={out}"]
    options = ["--selector=uniform,unet", "--frames=4", "--prompt=official", f"--data.cache={tmp_path / 'cache'}"]
    assert run(["evaluate", *given, *options, "--dry-run"]) == 0
    page = capsys.readouterr().out
    for part in ("8 found, 1 missing; 8 to decode", "unet, untrained", "The best answer is:", "missing: "):
        assert part in page
    assert not out.exists()
    assert run(["evaluate", *given, *options]) == 2
    assert "1 videos of 3 questions are missing" in capsys.readouterr().err


def test_evidence_that_cannot_be_measured_is_said_at_once(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "--benchmark=videomme", f"--annotations={DATA / 'videomme.json'}", f"--videos={videos}"]
    given += ["--evidence", "--selector=uniform", "--frames=4", f"--data.cache={tmp_path / 'cache'}"]
    for changes, message in (
        (["--skip-missing"], "none of these questions says where its answer lies"),
        (["--model=mllm"], "--evidence answers nothing: leave --model and --visual-tokens out"),
        (["--selector=unet@queries"], "which --evidence does without"),
        ([], "1 videos of 3 questions are missing"),
    ):
        assert run([*given, *changes]) == 2
        assert message in capsys.readouterr().err
    assert run([*given, "--dry-run"]) == 0
    assert "known of 0 questions" in capsys.readouterr().out


def key(setting: Setting, question: Question | None = None, video: Video = VIDEO, cell: int = 0) -> str:
    return Keys(setting).of(question or setting.questions[0], setting.cells[cell], video)


def test_a_key_says_all_that_decides_a_reply(
    make: Callable[..., Setting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, model = make("topk@queries"), tmp_path / "mllm"
    asked = setting.questions[0]
    shutil.copytree(MODELS / "mllm", model)
    same = [
        key(setting),
        key(make("uniform,topk@queries", "8,4"), cell=1),
        key(make("topk@queries", model=str(model))),  # by content, wherever it lies
        key(make("topk@queries", overrides=("--rollout.replicas=3", "--rollout.temperature=0.5", "--train.seed=4"))),
        key(setting, replace(asked, group=("other",), video="elsewhere/a.mp4")),
    ]
    assert len(set(same)) == 1
    (model / "generation_config.json").write_text("{}")
    others = [
        key(make("topk")),
        key(make("uniform")),
        key(make("unet")),
        key(make("tspo", overrides=("--sampler.width=64",))),
        key(setting, cell=1),
        key(setting, video=replace(VIDEO, key="other")),
        key(setting, replace(asked, question="Where is it?")),
        key(setting, replace(asked, answer="A" if asked.answer != "A" else "B")),
        key(setting, replace(asked, id="other")),
        key(make("topk@queries", prompt="lmms")),
        key(make("topk@queries", model=str(model))),
        key(make("topk@queries", visual_tokens=4)),
        key(make("topk@queries", overrides=("--frames.shown_as=images",))),
        key(make("topk@queries", overrides=("--prompts.max_queries=2",))),
        key(make("topk@queries", overrides=("--embedder.resize=crop",))),
    ]
    monkeypatch.setattr(samples_module, "_rule_code", lambda kind: "mended")
    others.append(key(setting))
    assert len({same[0], *others}) == 1 + len(others)


def test_a_file_is_known_by_its_content(make: Callable[..., Setting], tmp_path: Path) -> None:
    names = {row["question_id"] for row in json.loads((DATA / "videomme.json").read_text())}
    path, found = tmp_path / "frames.jsonl", []
    for last in (3, 4, 3):
        lines = (json.dumps({"question_id": name, "seconds": [0, 1, 2, last]}) for name in names)
        path.write_text("\n".join(sorted(lines)))
        found.append(key(make(f"file:{path}", "4")))
    assert found[0] == found[2] != found[1]
    with pytest.raises(UserError, match=r"frames.jsonl: lists no frames for .* \(8 frames\)|more than --frames=2"):
        make(f"file:{path}", "2,4")


def test_a_network_is_known_by_its_weights(make: Callable[..., Setting], tmp_path: Path) -> None:
    one, copy, other = (checkpoint(tmp_path / name, seed) for name, seed in (("one", 0), ("copy", 0), ("other", 1)))
    keys = [key(make("unet", "4", checkpoint=run_dir)) for run_dir in (one, copy, other)]
    assert keys[0] == keys[1] != keys[2]


def test_a_model_is_named_for_people() -> None:
    names = ("/runs/mine/checkpoints/step-000120/policy", "/models/policy", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert [samples_module._model_name(Path(name)) for name in names] == [
        "mine/step-000120", "policy", "Qwen2.5-VL-7B-Instruct"
    ]  # fmt: skip


def test_samples_survive_and_are_held_by_one(tmp_path: Path) -> None:
    with samples_in(tmp_path / "out") as samples:
        samples.add(Sample("k1", (0, 3), 4, ("a star",), "A"))
        samples.add(Sample("k2", reason="too long"))
        with pytest.raises(UserError, match="another evaluation writes there now"), samples_in(tmp_path / "out"):
            pass
    path = tmp_path / "out" / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-5])  # killed within a write
    with samples_in(tmp_path / "out") as samples:
        assert samples.find("k0", "k1") == Sample("k1", [0, 3], 4, ["a star"], "A")
        assert samples.find("k2") is None
        samples.add(Sample("k2", reason="too long"))
    assert Samples(tmp_path / "out").find("k2") == Sample("k2", [], 0, [], None, "too long")


def test_questions_in_flight_are_bounded_and_the_first_error_ends_all() -> None:
    now: set[int] = set()
    most, ended = 0, []

    async def work(queue: Iterator[int]) -> None:
        nonlocal most
        for question in queue:
            now.add(question)
            most = max(most, len(now))
            await asyncio.sleep(0)
            if question == 50:
                raise UserError("fifty")
            now.remove(question)
            ended.append(question)

    with pytest.raises(UserError, match="fifty"):
        asyncio.run(in_flight(work, iter(range(100)), 3))
    assert most == 3 and 45 < len(ended) < 55


def test_predictions_have_a_fixed_order(make: Callable[..., Setting], tmp_path: Path) -> None:
    setting = make("uniform,topk", "4")
    keys, questions = Keys(setting), setting.questions[3:6]
    found = {question.video: replace(VIDEO, key=question.video) for question in questions}
    files = []
    for name, order in (("one", 1), ("two", -1)):
        with samples_in(tmp_path / name) as samples:
            todo = [(question, cell) for question in questions[1:] for cell in setting.cells][::order]
            for question, cell in todo:
                samples.add(Sample(keys.of(question, cell, found[question.video]), (1, 2), 2, ("x",), question.id))
            reasons = {questions[0].id: "its video cannot be read"}
            rows = settled(setting, keys, questions, found, reasons, samples)
            samples.write(rows)
            files.append(samples.predictions.read_bytes())
    assert files[0] == files[1]
    assert {row.model for row in rows} == {"mllm"}
    assert [row.reply for row in rows] == [None, questions[1].id, questions[2].id] * 2
    assert rows[0] == prediction(
        setting, keys, questions[0], setting.cells[0], Sample(rows[0].key, reason=rows[0].reason)
    )
