"""The toy world: decided by its seed, made once, and readable by the libraries whose formats it uses."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import av
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from actors.prompts import answer_messages, parse_answer, parse_queries, query_messages
from services.config import ToyWorldConfig
from services.errors import UserError
from services.schema import LETTERS
from services.toyworld import ToyWorld, make_toy_world
from services.toyworld.mllm import _examples
from services.toyworld.world import COLOURS, FPS, HEIGHT, PLACES, SHAPES, WIDTH, Needle, ask

PROMPTS = (partial(query_messages, show_options=True, max_queries=4), answer_messages)


def make(root: Path, seed: int = 0) -> ToyWorld:
    config = ToyWorldConfig(seed=seed, videos=2, questions_per_video=4, min_seconds=16, max_seconds=24)
    return make_toy_world(config, root, *PROMPTS, warmup_steps=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ToyWorld:
    return make(tmp_path_factory.mktemp("world"))


def contents(world: ToyWorld) -> dict[str, bytes]:
    return {str(p.relative_to(world.root)): p.read_bytes() for p in sorted(world.root.rglob("*")) if p.is_file()}


def rows(world: ToyWorld) -> list[dict]:
    return [json.loads(line) for line in world.questions.read_text().splitlines()]


def pictures(path: Path) -> list[Image.Image]:
    """The picture of every second."""
    with av.open(str(path)) as container:
        return [frame.to_image() for number, frame in enumerate(container.decode(video=0)) if number % FPS == 0]


def test_seed_decides_every_byte(world: ToyWorld, tmp_path: Path) -> None:
    first, again, other = contents(world), contents(make(tmp_path)), contents(make(tmp_path, seed=1))
    assert again == first
    for name in ("questions.jsonl", "videos/0000.mp4", "clip/open_clip_model.safetensors", "mllm/model.safetensors"):
        assert other[name] != first[name]


def test_made_once(world: ToyWorld) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.root.rglob("*")}
    assert make(world.root.parent.parent) == world
    assert {path: path.stat().st_mtime_ns for path in world.root.rglob("*")} == before
    assert list(world.root.parent.iterdir()) == [world.root]


def test_second_of_two_makers_takes_the_first_ones_world(tmp_path: Path) -> None:
    """The slower maker finds the folder taken when it renames; neither leaves a draft behind."""
    config = ToyWorldConfig(videos=1, questions_per_video=1, min_seconds=2, max_seconds=2)
    inner: list[ToyWorld] = []

    def overtake(part: str, done: int, total: int) -> None:
        if part == "clip" and not inner:
            inner.append(make_toy_world(config, tmp_path, *PROMPTS, warmup_steps=1))

    outer = make_toy_world(config, tmp_path, *PROMPTS, warmup_steps=1, progress=overtake)
    assert inner == [outer]
    assert list(outer.root.parent.iterdir()) == [outer.root]


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="questions_per_video"):
        make_toy_world(ToyWorldConfig(questions_per_video=19), tmp_path, *PROMPTS)
    assert list((tmp_path / "toyworld").iterdir()) == []


def test_videos_are_h264_and_as_long_as_said(world: ToyWorld) -> None:
    for path in sorted(world.videos.iterdir()):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height, stream.average_rate) == (WIDTH, HEIGHT, FPS)
            seconds = float(stream.duration * stream.time_base)
        assert 16 <= seconds <= 24
        assert len(pictures(path)) == seconds


def test_questions_are_in_the_training_format(world: ToyWorld) -> None:
    assert pq.read_table(world.root / "questions.parquet").to_pylist() == rows(world)
    assert len({row["id"] for row in rows(world)}) == 8
    assert Counter(row["answer"] for row in rows(world)) == dict.fromkeys("ABCD", 2)
    for row in rows(world):
        assert len(set(row["options"])) == 4
        assert (world.root / row["video"]).is_file()
        assert 0 <= row["pass_rate"] <= 0.75
        assert 1 <= row["needle"][1] - row["needle"][0] + 1 <= 6


def test_needle_is_seen_in_its_seconds_only(world: ToyWorld) -> None:
    """The colour asked about is in the picture exactly while the needle is."""
    asked = [row for row in rows(world) if row["question"].startswith("What colour")]
    assert asked
    for row in asked:
        rgb = np.array(COLOURS[row["options"][LETTERS.index(row["answer"])]])
        for second, picture in enumerate(pictures(world.root / row["video"])):
            close = (np.abs(np.asarray(picture, np.int32) - rgb).max(-1) < 30).sum()
            assert (close > 60) == (row["needle"][0] <= second <= row["needle"][1])


def test_right_option_stands_at_its_letter() -> None:
    needle = Needle("star", "red", "top left", 3, 6)
    for kind, truth in (("colour", "red"), ("shape", "star"), ("place", "top left")):
        question = ask(kind, needle, "C", np.random.default_rng(0))
        assert (question.options[2], question.answer, question.pass_rate) == (truth, "C", 0.375)


def test_clip_tells_frames_and_texts_apart(world: ToyWorld) -> None:
    name = f"local-dir:{world.clip}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(["a red star", "the blue ring at the top left, " * 20])
    assert tokens.shape == (2, 32)
    assert (tokens.argmax(-1) == torch.tensor([4, 31])).all()
    images = torch.stack([preprocess(picture) for picture in pictures(world.videos / "0000.mp4")])
    with torch.no_grad():
        similarity = model.eval().encode_text(tokens, normalize=True) @ model.encode_image(images, normalize=True).T
    assert (similarity.max(1).values - similarity.min(1).values > 0.02).all()
    assert (similarity[0] - similarity[1]).abs().max() > 0.02
    assert model.logit_scale.exp().item() == pytest.approx(100)


def test_chat_template_is_qwens(world: ToyWorld) -> None:
    processor = AutoProcessor.from_pretrained(world.mllm)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What is it?"}]}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    spoken = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(spoken) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_mllm_reads_a_video_in_transformers(world: ToyWorld) -> None:
    processor = AutoProcessor.from_pretrained(world.mllm)
    model = AutoModelForImageTextToText.from_pretrained(world.mllm).eval()
    question = ask("colour", Needle("star", "red", "top left"), "A", np.random.default_rng(0))
    prompt = processor.apply_chat_template(answer_messages(question), add_generation_prompt=True)
    video = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    inputs = processor(text=[prompt], videos=[video], return_tensors="pt")
    assert inputs.video_grid_thw.tolist() == [[2, HEIGHT // 14, WIDTH // 14]]
    assert (inputs.input_ids == model.config.video_token_id).sum() == 2 * HEIGHT * WIDTH // 28**2
    reply = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs.input_ids.shape[1] :]
    assert reply.max() < len(processor.tokenizer)
    text = "Reason. <query>ünusual wörds</query>\n7 < 8"
    assert processor.tokenizer.decode(processor.tokenizer.encode(text)) == text


def test_warmup_replies_mostly_keep_the_format() -> None:
    """About one reply in eight is broken, and an answer names the option of its letter, right or not."""
    examples = _examples(np.random.default_rng(0), *PROMPTS)
    kept = Counter()
    for number, example in zip(range(2000), examples, strict=False):
        turn = ("query", "answer")[number % 2]
        kept[turn] += parse_queries(example.reply)[1] if turn == "query" else parse_answer(example.reply, 4)[1]
        assert any(word in example.reply for word in (*SHAPES, *COLOURS, *PLACES))
    assert 840 < kept["query"] < 910
    assert 840 < kept["answer"] < 910
