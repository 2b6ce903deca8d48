"""Replies of any shape parse; messages hold what the turn is meant to show."""

from __future__ import annotations

import random

import pytest

from actors.prompts import answer_messages, parse_answer, parse_queries, query_messages
from services.questions.subtitles import Subtitle
from services.schema import Question

QUESTION = Question("q", "/v.mp4", "What is red?", ("star", "ring"), "B")


@pytest.mark.parametrize(
    ("reply", "queries", "kept"),
    [
        ("I look.\n<query>a star</query>\n  <query> a red ring </query> ", ("a star", "a red ring"), True),
        ("", (), False),
        ("a star", (), False),
        ("<query></query>", (), False),
        ("<query>  </query>", (), False),
        ("<query>a star", (), False),
        ("see <query>a star</query>", (), False),
        ("<query>a</query>\n<query>b", ("a",), False),
        ("<query>a</query><query>b</query>", (), False),
        ("\n".join(f"<query>{i}</query>" for i in range(5)), ("0", "1", "2", "3"), False),
        ("\n".join(f"<query>{i}</query>" for i in range(4)), ("0", "1", "2", "3"), True),
        ("<query>été 🌟</query>", ("été 🌟",), True),
    ],
)
def test_queries(reply: str, queries: tuple[str, ...], kept: bool) -> None:
    assert parse_queries(reply) == (queries, kept)


@pytest.mark.parametrize(
    ("reply", "letter", "kept"),
    [
        ("It is red. <answer>B</answer>", "B", True),
        ("<answer> A </answer>", "A", True),
        ("<answer>C</answer>", "C", False),
        ("<answer>A</answer> no, <answer>B</answer>", "B", False),
        ("<answer>AB</answer>", None, False),
        ("B", None, False),
        ("", None, False),
    ],
)
def test_answer(reply: str, letter: str | None, kept: bool) -> None:
    assert parse_answer(reply, num_options=2) == (letter, kept)


def test_replies_of_any_shape_parse() -> None:
    pieces = [
        "<query>",
        "</query>",
        "<answer>",
        "</answer>",
        "A",
        "\n",
        " ",
        "\x00",
        "é",
        "<",
        ">",
        "🌟",
        "<query",
        "Z",
    ]
    rng = random.Random(0)
    for _ in range(5000):
        reply = "".join(rng.choices(pieces, k=rng.randrange(12)))
        queries, kept = parse_queries(reply)
        assert len(queries) <= 4
        assert all(query.strip() for query in queries)
        assert not kept or queries
        letter, answered = parse_answer(reply, 4)
        assert letter is not None or not answered


def test_messages() -> None:
    with_options = query_messages(QUESTION)[0]["content"]
    assert with_options[0] == {"type": "video"}
    assert "A. star\nB. ring" in with_options[1]["text"]
    bare = query_messages(QUESTION, show_options=False, max_queries=2, has_video=False)[0]["content"]
    assert [part["type"] for part in bare] == ["text"]
    assert "ring" not in bare[0]["text"]
    assert "up to 2 " in bare[0]["text"]
    assert "What is red?\nA. star\nB. ring" in answer_messages(QUESTION)[0]["content"][1]["text"]


def shown(messages: list[dict]) -> str:
    return "".join(part.get("text", f"<{part['type']}>") for part in messages[0]["content"])


def test_images_stand_behind_their_seconds_and_subtitles_between_them() -> None:
    subtitles = [Subtitle(2.0, 4.0, "look"), Subtitle(60.5, 61.5, "gone")]
    text = shown(answer_messages(QUESTION, (0, 3, 61), subtitles, "images"))
    assert text.startswith(
        "0 s: <image>\n3 s: <image>\nSubtitle: look\n61 s: <image>\nSubtitle: gone\nWhat is red?\nA. "
    )


def test_seconds_of_doubled_frames_stand_behind_the_video_and_before_its_subtitles() -> None:
    text = shown(answer_messages(QUESTION, (0, 3, 61), [Subtitle(2.0, 4.0, "look")], "doubled"))
    assert text.startswith("<video>Seconds of the frames: 0, 3, 61\nSubtitles:\n2 s: look\nWhat is red?")


def test_a_video_has_its_subtitles_behind_it() -> None:
    text = shown(answer_messages(QUESTION, (0, 3, 61), [Subtitle(2.0, 4.0, "look")]))
    assert text.startswith("<video>Subtitles:\n2 s: look\nWhat is red?")
    assert shown(answer_messages(QUESTION, (0, 3))).startswith("<video>What is red?")
