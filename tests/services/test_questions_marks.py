"""Options' letters in every way of writing them, and text that only looks like them."""

from __future__ import annotations

import pytest

from services.questions import scan_questions
from services.questions.choices import letter, letter_of, split_options, unlabelled
from tests.services.question_files import save


@pytest.mark.parametrize(
    "options",
    [
        "A．red\nB．blue", "（A）red\n（B）blue", "Ａ．red\nＢ．blue", "（Ａ）red\n（Ｂ）blue", "Ａ：red\nＢ：blue",
        "A、red\nB、blue", "A）red\nB）blue", "[A] red\n[B] blue", "【A】red\n【B】blue", "［Ａ］red\n［Ｂ］blue",
        "**A.** red\n**B.** blue", "**A**. red\n**B**. blue", "**A. red**\n**B. blue**", "**(A)** red\n**(B)** blue",
        "*A.* red\n*B.* blue", "- A. red\n- B. blue", "• A. red\n• B. blue", "* A) red\n* B) blue",
        "* **A.** red\n* **B.** blue", "- （A）red\n- （B）blue", "1. A. red\n2. B. blue", "a. red\nb. blue",
        "(a) red\n(b) blue", "a) red\nb) blue", "A. red    B. blue", "A) red B) blue", "[A] red [B] blue",
        "（A）red（B）blue".replace("（B", " （B"), "A、red B、blue", "A. red; B. blue", "A．red，B．blue", "A. red\tB. blue",
        "A. red\r\nB. blue\r\nAnswer with one letter.", "**Options:**\nA. red\nB. blue", "选项：\nA．red\nB．blue",
    ],
)  # fmt: skip
@pytest.mark.parametrize("question", ["What?", "什么颜色（A）？", "What did A. Lincoln say?"])
def test_marks(question, options):
    assert split_options(f"{question}\n{options}") == (question, ("red", "blue"))


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("What?\nA. red    B. blue\nC. green    D. black", "What?", ("red", "blue", "green", "black")),
        ("What?\n(A)red (B)blue\n(C)green (D)x", "What?", ("red", "blue", "green", "x")),
        ("What? A. red  B. blue\nC. green  D. black", "What?", ("red", "blue", "green", "black")),
        ("什么颜色？A．红；B．蓝；C．绿", "什么颜色？", ("红", "蓝", "绿")),
        ("什么？\n（A）红（左）\n（B）蓝：右", "什么？", ("红（左）", "蓝：右")),
        ("What?\nA. -3\nB. *x*\nC. **y** z\nD. - w", "What?", ("-3", "*x*", "**y** z", "- w")),
        ("What?\nA. Vitamin A. Or\nB. Vitamin B. Both  C. x", "What?", ("Vitamin A. Or", "Vitamin B. Both  C. x")),
        ("Who?\nA. A. Lincoln\nB. B. Franklin", "Who?", ("A. Lincoln", "B. Franklin")),
        ("When?\nA. 5 a.m.\nB. 6 p.m.", "When?", ("5 a.m.", "6 p.m.")),
        ("A: Hi! B: Hello. Who speaks?", "A: Hi! B: Hello. Who speaks?", ()),
        ("A、B、C谁最高？", "A、B、C谁最高？", ()),
        ("A.I. or B.C., which is older?", "A.I. or B.C., which is older?", ()),
        ("Which?\n- red\n- blue", "Which?\n- red\n- blue", ()),
    ],
)
def test_what_stands_between_marks_is_left_alone(text, question, options):
    assert split_options(text) == (question, options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("What?\nA. red  B. vitamin C. x\nC. green  D. y", "lettered A, B, C, C, D"),
        ("什么？\nA．红\nC．蓝", "lettered A, C"),
        ("- A. red\n- B. blue", "no text before"),
    ],
)
def test_marks_that_are_not_whole(text, reason):
    with pytest.raises(ValueError, match=reason):
        split_options(text)


@pytest.mark.parametrize(
    ("options", "bare"),
    [
        (["A．红", "B．蓝"], ("红", "蓝")),
        (["（A）红", "（B）蓝（左）"], ("红", "蓝（左）")),
        (["a) x", "b) y"], ("x", "y")),
        (["- A. x", "- B. y"], ("x", "y")),
        (["**A.** x", "**B.** y"], ("x", "y")),
        (["**A. x**", "**B. y**"], ("x", "y")),
        (["[A] x", "[B] y"], ("x", "y")),
        (["A. Lincoln", "J. Adams", "T. Jefferson"], ("A. Lincoln", "J. Adams", "T. Jefferson")),
        (["A.I.", "B.C."], ("A.I.", "B.C.")),
        (["a.m.", "p.m."], ("a.m.", "p.m.")),
    ],
)
def test_unlabelled(options, bare):
    assert unlabelled(options) == bare


@pytest.mark.parametrize(
    "answer", ["Ｂ", "（B）", "（Ｂ）", "[B]", "**B**", "**B.**", "B、", "b)", "<answer>Ｂ．</answer>"]
)
def test_answers(answer):
    assert letter(answer, 3) == letter_of(answer, ["x", "y", "z"]) == "B"
    assert letter_of("（B）y", ["x", "y", "z"]) == letter_of("**B.** y", ["x", "y", "z"]) == "B"


def row(options, answer):
    lines = "".join(f"\n{mark}. {option}" for mark, option in zip("ABCDEF", options, strict=False))
    return {"problem": f"<video>How many?{lines}", "answer": answer, "videos": ["v.mp4"], "data_source": "d"}


DOWN = ("4", "3", "2", "1")
INDEX, NUMBER = row(("cat", "dog"), 0), row(("40", "30"), 30)
"""Rows whose integer can only be an index, or only a number."""


@pytest.mark.parametrize(
    ("rows", "letters"),
    [
        ([row(DOWN, 3)], "-"),
        ([row(DOWN, "3")], "B"),
        ([row(DOWN, 3.0)], "-"),
        ([row(DOWN, 3), INDEX], "DA"),
        ([row(DOWN, 3), NUMBER], "BB"),
        ([row(DOWN, 3), NUMBER, INDEX], "-BA"),
        ([row(DOWN, 2)], "C"),
        ([row(DOWN, 0)], "A"),
        ([row(DOWN, 4)], "A"),
        ([row(("0", "1", "2"), 1)], "B"),
        ([row(("0 cups", "2 cups", "1 cup"), 1)], "-"),
        ([row(("three", "two", "one"), 1)], "-"),
        ([row(("３", "２", "１"), 1)], "-"),
        ([row(("3.0", "2.0", "1.0"), 1)], "-"),
        ([row(("1,000", "2,000"), 2000)], "B"),
        ([row(("2", "2", "5"), 0), row(("7", "2", "2"), 2)], "AC"),
        ([row(("x", "y"), 1), row(("x", "y"), 2)], "--"),
        ([row(("x", "y"), 1), row(("x", "y"), 2), INDEX], "B-A"),
        ([row(("x", "y"), -1)], "-"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_integers_mean_what_the_file_decides(rows, letters, suffix, tmp_path):
    found = scan_questions(save(tmp_path / f"x{suffix}", rows))
    answers = {question.id: question.answer for question in found.questions}
    assert "".join(answers.get(f"x-{number}", "-") for number in range(1, len(rows) + 1)) == letters
    assert all(one.malformed and one.field == "answer" for one in found.refused)


def test_why_an_integer_is_refused(tmp_path):
    rows = [row(DOWN, 3), row(("x", "y"), 2), row(("x", "y"), 1)]
    first, second, third = scan_questions(save(tmp_path / "a.jsonl", rows)).refused
    assert "from 0 or from 1" in first.reason and "valid: one letter of A, B" in second.reason
    assert "from 0 or from 1" in third.reason
    (alone,) = scan_questions(save(tmp_path / "b.jsonl", rows[:1])).refused
    assert "may mean B or D" in alone.reason


def test_a_letter_without_options_says_so(tmp_path):
    rows = [{"problem": "<video>What?\nred or blue", "answer": "B", "videos": ["v.mp4"]}]
    (refused,) = scan_questions(save(tmp_path / "a.jsonl", rows)).refused
    assert "its answer is a letter, but no options can be read in problem" in refused.reason
