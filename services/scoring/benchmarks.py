"""The benchmarks as rows of a table: which files are theirs, how they ask, how they read a reply, what they report.

`official` follows the script that the benchmark's authors publish, `lmms` the harness lmms-eval (its main branch of August
2026). The requests are those programs' prompts word for word, since a model's accuracy depends on them; what stands before them
(frames, subtitles) is the answer turn's (`actors/prompts.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.schema import LETTERS, Question
from services.scoring.extraction import Rule, before_bracket, first_of, lenient, ranked, within_bracket


@dataclass(frozen=True)
class Style:
    """How one program asks a benchmark's questions and reads the replies."""

    request: Callable[[Question], str] | None
    """The text behind the frames; None: that of the answer turn in training."""
    extract: Rule


@dataclass(frozen=True)
class Benchmark:
    """What is particular about one benchmark."""

    title: str
    formats: tuple[str, ...]
    """Forms of its files, as `services/questions` names them; empty: any."""
    official: Style
    lmms: Style
    dimension: str
    """What its plain groups are; those written `name: label` have their dimension before the colon."""
    headline: str = "micro"
    """The number that its own table leads with: `micro` (share of all questions), `macro` (mean over the labels of
    `dimension`) or `groups` (mean score of its groups of four)."""


def _options(question: Question, form: str) -> str:
    return "\n".join(form.format(letter, text) for letter, text in zip(LETTERS, question.options, strict=False))


def _letters(question: Question) -> str:
    *first, last = tuple(LETTERS[: len(question.options)])
    return f"{', '.join(first)}{',' * (len(first) > 1)} or {last}"


def _plain(question: Question, form: str = "{}. {}") -> str:
    return f"{question.question}\n{_options(question, form)}"


def _respond(question: Question, seen: str) -> str:
    return (
        f"Select the best answer to the following multiple-choice question based on {seen}. "
        f"Respond with only the letter ({_letters(question)}) of the correct option."
    )


def _videomme(question: Question) -> str:
    return f"{_respond(question, 'the video')}\n{_plain(question)}\nThe best answer is:"


def _videomme_lmms(question: Question) -> str:
    asked = f"{_respond(question, 'the video and the subtitles')}\n{_plain(question)}\n"
    return f"{asked}\nAnswer with the option's letter from the given choices directly."


def _videomme_v2(question: Question) -> str:
    return f"These are the frames of a video.\n{_videomme_v2_lmms(question)}"


def _videomme_v2_lmms(question: Question) -> str:
    return f"Question: {_plain(question)}\n{_respond(question, 'the video')}"


def _longvideobench(question: Question) -> str:
    return f"Question: {_plain(question)}\nAnswer with the option's letter from the given choices directly."


def _longvideobench_lmms(question: Question) -> str:
    return f"{_plain(question)}\nAnswer with the option's letter from the given choices directly.\n"


def _lvbench(question: Question) -> str:
    return _plain(question, "({}) {}")


def _lvbench_lmms(question: Question) -> str:
    return f"{_plain(question, '({}) {}')}\nAnswer the question with the option letter"


def _mlvu(question: Question) -> str:
    watch = "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option"
    asked = f"Question: {question.question}\nOptions:\n{_options(question, '({}) {}')}"
    return f"{watch} that accurately addresses the question.\n{asked}\nOnly give the best option.\nBest option: ("


def _mlvu_dev_lmms(question: Question) -> str:
    return f"{_plain(question, '({}) {}')}\nOnly give the best option.\nBest option: ("


def _mlvu_test_lmms(question: Question) -> str:
    return _plain(question, "({}) {}")


_SAID = ("The best answer is", "The correct answer is", "The answer is", "The answer")
_VIDEOMME = (*_SAID, "The best option isThe correct option is", "Best answer:Best option:")
"""As in the script, where a comma is missing in two places."""
_LONGVIDEOBENCH = (*_SAID, "The best option is", "The correct option is", "Best answer:", "Best option:")
_V2 = ("Final Answer:", *_LONGVIDEOBENCH, "Answer:", "Option:")
_V2_LMMS = (*_LONGVIDEOBENCH[:6], "Final Answer:", "Best answer:", "Best option:", "Answer:", "Option:")
_FOUR = ranked("ABCD")
"""What lmms-eval reads a reply with; it knows four letters, also where there are six options."""
_FIVE = first_of("ABCDE", _LONGVIDEOBENCH)
"""LongVideoBench's authors publish no scoring but that in lmms-eval, which draws a random letter where this finds none."""

BENCHMARKS: dict[str, Benchmark] = {
    "videomme": Benchmark(
        "VideoMME",
        ("VideoMME",),
        Style(_videomme, first_of("ABCD", _VIDEOMME)),
        Style(_videomme_lmms, _FOUR),
        "duration",
    ),
    "longvideobench": Benchmark(
        "LongVideoBench",
        ("LongVideoBench",),
        Style(_longvideobench, _FIVE),
        Style(_longvideobench_lmms, _FIVE),
        "duration",
    ),
    "lvbench": Benchmark(
        "LVBench", ("LVBench",), Style(_lvbench, within_bracket), Style(_lvbench_lmms, _FOUR), "question type"
    ),
    "mlvu-dev": Benchmark(
        "MLVU dev", ("MLVU dev",), Style(_mlvu, before_bracket), Style(_mlvu_dev_lmms, _FOUR), "task", "macro"
    ),
    "mlvu-test": Benchmark(
        "MLVU test", ("MLVU test",), Style(_mlvu, before_bracket), Style(_mlvu_test_lmms, _FOUR), "task", "macro"
    ),
    "videomme-v2": Benchmark(
        "Video-MME-v2",
        ("Video-MME-v2",),
        Style(_videomme_v2, first_of("A-H", _V2)),
        Style(_videomme_v2_lmms, first_of("A-H", _V2_LMMS)),
        "group type",
        "groups",
    ),
    "training": Benchmark("training format", (), Style(None, lenient), Style(None, ranked("ABCDEFGH")), "group"),
}
"""What `--benchmark` takes. `training` is any other file of questions, asked as in training."""

PROMPTS = ("ours", "official", "lmms")
"""What `--prompt` takes. `ours` is the answer turn's request, which a trained checkpoint knows."""


def request(benchmark: str, prompt: str, question: Question) -> str | None:
    """The text behind the frames that `prompt` asks `question` with; None for the answer turn's own."""
    styles = {"official": BENCHMARKS[benchmark].official, "lmms": BENCHMARKS[benchmark].lmms}
    style = styles.get(prompt)
    return style.request(question) if style and style.request else None
