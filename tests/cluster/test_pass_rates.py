"""A measured pass rate is another question's, or another setting's, never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import TOY
from cluster.config import Config, load_config
from cluster.preparing.pass_rates import PassRates
from services.schema import Question, Video

QUESTION = Question("q", "a.mp4", "What colour is the star?", ("red", "blue"), "A", subtitles="a.srt")
VIDEOS = {"a.mp4": Video("a.mp4", "key", 60, 56, 56)}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(TOY, [f"--data.cache={tmp_path}"])


def keep(config: Config) -> None:
    rates = PassRates(config, 8)
    with rates._storage.write(rates._name(QUESTION, VIDEOS)) as temporary:
        temporary.write_text('{"right": 4}')


def test_a_rate_is_found_again(config: Config) -> None:
    assert PassRates(config, 8).known(QUESTION, VIDEOS) is None
    keep(config)
    assert PassRates(config, 8).known(QUESTION, VIDEOS) == 0.5
    assert PassRates(config, 8).known(replace(QUESTION, pass_rate=0.1), VIDEOS) == 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"id": "p"},
        {"question": "What colour is the ring?"},
        {"options": ("red", "green")},
        {"answer": "B"},
        {"subtitles": "b.srt"},
        {"subtitle_offset": 2.0},
    ],
    ids=str,
)
def test_another_question_has_no_rate(change: dict[str, Any], config: Config) -> None:
    keep(config)
    assert PassRates(config, 8).known(replace(QUESTION, **change), VIDEOS) is None


@pytest.mark.parametrize(
    "other",
    [
        lambda config: PassRates(config, 16),
        lambda config: PassRates(load_config(TOY, [f"--data.cache={config.data.cache}", "--frames.budget=4"]), 8),
        lambda config: PassRates(load_config(TOY, [f"--data.cache={config.data.cache}", "--train.seed=7"]), 8),
    ],
    ids=["samples", "budget", "seed"],
)
def test_another_setting_has_no_rate(other: Callable[[Config], PassRates], config: Config) -> None:
    keep(config)
    assert other(config).known(QUESTION, VIDEOS) is None


def test_another_content_of_the_video_has_no_rate(config: Config) -> None:
    keep(config)
    assert PassRates(config, 8).known(QUESTION, {"a.mp4": replace(VIDEOS["a.mp4"], key="other")}) is None
