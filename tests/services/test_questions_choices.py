"""Options and answers out of texts: what each way of writing means, and what means nothing in one way only."""

from __future__ import annotations

import pytest

from services.questions.choices import letter, letter_of, split_options, unlabelled


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("What?\n(A) red\n(B) blue", "What?", ("red", "blue")),
        ("What?\nA. red\nB. blue\nC. none\n", "What?", ("red", "blue", "none")),
        ("What?\n\n A) red\n B) blue", "What?", ("red", "blue")),
        ("What?\nA: red\nB: blue", "What?", ("red", "blue")),
        ("What?\nA.red\nB.blue", "What?", ("red", "blue")),
        ("<image>\nWhat?\nA. red\nB. blue", "What?", ("red", "blue")),
        ("Question: What? Options: (A) red (B) blue (C) none", "What?", ("red", "blue", "none")),
        ("<video> What?\nOptions:\nA. red\nB. blue\nAnswer with one letter.", "What?", ("red", "blue")),
        ("What? A. red B. blue C. none", "What?", ("red", "blue", "none")),
        ("What?\nA. red B. blue", "What?", ("red", "blue")),
        ("Two lines.\nWhat?\n(A) red\nor pink\n(B) blue", "Two lines.\nWhat?", ("red\nor pink", "blue")),
        ("What?\n(A) \n(B) blue\n(C) \n", "What?", ("", "blue", "")),
        ("A. is first in\nA. x\nB. y", "A. is first in", ("x", "y")),
        ("Which?\n(A) Vitamin A. Or\n(B) Vitamin B.", "Which?", ("Vitamin A. Or", "Vitamin B.")),
        ("Which? (A) Vitamin A. (B) Vitamin C.", "Which?", ("Vitamin A.", "Vitamin C.")),
        ("What is it about?", "What is it about?", ()),
        ("He met A. Lincoln and J. K. Smith. Who is it?", "He met A. Lincoln and J. K. Smith. Who is it?", ()),
        ("Is it vitamin A. Or (B) rather?", "Is it vitamin A. Or (B) rather?", ()),
        ("<video>Question: How many?", "How many?", ()),
    ],
)
def test_split(text, question, options):
    assert split_options(text) == (question, options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("What?\n(A) x\n(B) y\n(D) z", "lettered A, B, D"),
        ("What?\nA. x\nC. y", "lettered A, C"),
        ("What?\nA. x\nB. y\nB. z", "lettered A, B, B"),
        ("What? (A) x (B) y (D) z", "lettered A, B, D"),
        ("<video>\n(A) x\n(B) y", "no text before"),
        ("Options:\n(A) x\n(B) y", "no text before"),
    ],
)
def test_options_that_are_not_whole(text, reason):
    with pytest.raises(ValueError, match=reason):
        split_options(text)


@pytest.mark.parametrize(
    ("options", "bare"),
    [
        (["A. x", "B. y"], ("x", "y")),
        (["(A) x", "(B) y.", "(C) "], ("x", "y.", "")),
        (["A: x", "B) y"], ("x", "y")),
        (["x", "y"], ("x", "y")),
        (["A. Lincoln", "Washington"], ("A. Lincoln", "Washington")),
    ],
)
def test_unlabelled(options, bare):
    assert unlabelled(options) == bare


@pytest.mark.parametrize("options", [["A. x", "B. y", "D. z"], ["B. x", "C. y"], ["A. x", "B. y", "none"]])
def test_letters_that_are_not_whole(options):
    with pytest.raises(ValueError, match="lettered"):
        unlabelled(options)


@pytest.mark.parametrize(
    "answer", ["B", "b", "(B)", "B.", "B)", " B ", "<answer>B</answer>", "x <answer> (B) </answer>"]
)
def test_letter(answer):
    assert letter(answer, 3) == "B" == letter_of(answer, ["x", "y", "z"])


@pytest.mark.parametrize("answer", ["D", "", "AB", "y", 1, None, "<answer></answer>", "B or C"])
def test_no_letter(answer):
    with pytest.raises(ValueError, match="one letter of A, B, C"):
        letter(answer, 3)


@pytest.mark.parametrize(
    ("answer", "options", "right"),
    [
        (0, ["x", "y"], "A"),
        (1, ["x", "y"], "B"),
        ("y", ["x", "y"], "B"),
        ("The  Dog.", ["A cat", "the dog"], "B"),
        ("Red", ["red", "Red"], "B"),
        ("1", ["2", "1"], "B"),
        ("\\boxed{1}", ["2", "1"], "B"),
        ("\\boxed{C}", ["x", "y", "z"], "C"),
        ("B. y", ["x", "y"], "B"),
        ("(B) Y.", ["x", "y"], "B"),
        ("A. Lincoln", ["Washington", "A. Lincoln"], "B"),
        ("A", ["A", "B"], "A"),
    ],
)
def test_letter_of(answer, options, right):
    assert letter_of(answer, options) == right


@pytest.mark.parametrize(
    ("answer", "options", "reason"),
    [
        ("z", ["x", "y"], "none of the options"),
        ("C", ["x", "y"], "none of the options"),
        ("B. x", ["x", "y"], "none of the options"),
        ("A", ["B", "A"], "may mean A or B"),
        ("x", ["x", "x"], "may mean A or B"),
        (2, ["x", "y"], "valid"),
        (-1, ["x", "y"], "valid"),
        (True, ["x", "y"], "valid"),
        (None, ["x", "y"], "valid"),
        ("", ["x", "y"], "none of the options"),
    ],
)
def test_an_answer_that_is_not_one_option(answer, options, reason):
    with pytest.raises(ValueError, match=reason):
        letter_of(answer, options)
