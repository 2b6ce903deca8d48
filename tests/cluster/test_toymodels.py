"""The shipped toy models: public formats, what they can and cannot do, and a recipe that still makes them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from actors.prompts import parse_answer, parse_queries
from cluster.toyworld import MODELS, dialogues
from cluster.toyworld.dialogues import Dialogue, answers, queries
from cluster.toyworld.gallery import Gallery
from cluster.toyworld.questions import Asked
from cluster.toyworld.recipe import train_models
from cluster.toyworld.words import ALIASES, COLOURS, SHAPES, caption
from services.positions import seconds_per_grid
from services.questions.evidence import share_asked
from services.schema import Question
from services.vision import PROCESSOR_KWARGS


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    """Pictures that no model has seen."""
    return Gallery(2, seed=1234)


@pytest.fixture(scope="module")
def mllm() -> Iterator[tuple[object, object]]:
    """On one thread: several of them wait for each other more than they work on a model this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield (
        AutoProcessor.from_pretrained(MODELS / "mllm"),
        AutoModelForImageTextToText.from_pretrained(MODELS / "mllm", dtype=torch.float32).eval(),
    )
    torch.set_num_threads(threads)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """The questions behind the dialogues, in their order."""
    found: list[Asked] = []

    def remembered(*arguments: object) -> Asked:
        found.append(ask(*arguments))
        return found[-1]

    ask = dialogues.ask
    monkeypatch.setattr(dialogues, "ask", remembered)
    return found


def reply_to(
    dialogue: Dialogue, side: int, gallery: Gallery, mllm: tuple[object, object], sampled: bool = False
) -> str:
    """By transformers alone."""
    processor, model = mllm
    prompt = processor.apply_chat_template(dialogue.messages, add_generation_prompt=True)
    things = np.array([gallery.number(thing) for thing in dialogue.shown])
    video = torch.from_numpy(gallery.pictures(things, side, np.random.default_rng(0))).permute(0, 3, 1, 2)
    inputs = processor(text=[prompt], videos=[video], return_tensors="pt", **PROCESSOR_KWARGS)
    inputs["second_per_grid_ts"] = torch.tensor([seconds_per_grid(len(dialogue.shown), dialogue.seconds, 2)])
    with torch.no_grad():
        reply = model.generate(**inputs, do_sample=sampled, temperature=1.0, top_k=0, max_new_tokens=48)
    return processor.tokenizer.decode(reply[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_the_models_are_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*")) < 16 * 2**20


def test_chat_template_is_qwens(mllm: tuple[object, object]) -> None:
    processor, _ = mllm
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
    text = "Reason. <query>ünusual wörds</query>\n7 < 8"
    assert processor.tokenizer.decode(processor.tokenizer.encode(text)) == text


def test_clip_finds_things_by_captions_and_not_by_other_words(gallery: Gallery) -> None:
    name = f"local-dir:{MODELS / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    pictures = gallery.pictures(np.arange(len(gallery.things)), 56, np.random.default_rng(0))
    with torch.no_grad():
        images = model.eval().encode_image(
            torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures]), normalize=True
        )

        def precision(texts: list[str], words: list[str]) -> float:
            """Share of the ten most similar pictures that show what the word means."""
            similarity = model.encode_text(tokenizer(texts), normalize=True) @ images.T
            hits = [
                word in (gallery.things[place].shape, gallery.things[place].colour)
                for word, row in zip(words, similarity, strict=True)
                for place in row.topk(10).indices
            ]
            return float(np.mean(hits))

        plain = [caption(shape) for shape in SHAPES] + [caption(colour=colour) for colour in COLOURS]
        assert precision(plain, [*SHAPES, *COLOURS]) > 0.95
        assert precision([f"a {of_word[0]}" for of_word in ALIASES.values()], list(ALIASES)) < 0.3


def test_mllm_reads_the_right_frames(gallery: Gallery, mllm: tuple[object, object], asked: list[Asked]) -> None:
    right, kept = defaultdict(list), []
    turns = seen(answers(np.random.default_rng(0), 8, 8), asked)
    for turn in islice(turns, 100):
        letter, formatted = parse_answer(reply_to(turn, 56, gallery, mllm), 4)
        kept.append(formatted)
        right[asked[-1].kind].append(letter == asked[-1].answer)
    assert np.mean(kept) >= 0.97
    means = {kind: np.mean(of_kind) for kind, of_kind in right.items()}
    assert np.mean([one for of_kind in right.values() for one in of_kind]) >= 0.9, means
    assert min(means.values()) >= 0.75, means


def seen(turns: Iterator[Dialogue], asked: list[Asked]) -> Iterator[Dialogue]:
    """The turns that show what is asked about."""
    for turn in turns:
        if set(asked[-1].moments) <= set(turn.shown):
            yield turn


def test_mllm_asks_the_right_queries_only_sometimes(
    gallery: Gallery, mllm: tuple[object, object], asked: list[Asked]
) -> None:
    torch.manual_seed(0)
    right = []
    for turn in islice(queries(np.random.default_rng(0), 4), 60):
        written, formatted = parse_queries(reply_to(turn, 28, gallery, mllm, sampled=True))
        question = Question("", "", "", (), "", wanted_queries=asked[-1].wanted)
        right.append(formatted and share_asked(question, written) == 1.0)
    assert 0.25 <= np.mean(right) <= 0.65


def test_the_recipe_still_makes_them(tmp_path: Path) -> None:
    """Two steps of every part lose what they lost when the shipped models were made."""
    expected = json.loads((MODELS / "shortened.json").read_text())
    losses = train_models(tmp_path / "models", 0, lambda *_: None, stop=2)
    assert losses.keys() == expected.keys() == json.loads((MODELS / "losses.json").read_text()).keys()
    for part, of_part in losses.items():
        assert of_part == pytest.approx(expected[part], rel=1e-3), part
    for name in ("clip/open_clip_config.json", "clip/tokenizer.json", "mllm/config.json", "mllm/tokenizer.json"):
        assert (tmp_path / "models" / name).read_bytes() == (MODELS / name).read_bytes()
