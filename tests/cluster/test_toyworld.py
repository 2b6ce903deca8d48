"""The toy world: decided by its seed, made once, each of its difficulties there and under its knob."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.toyworld import ToyWorld, make_toy_world
from cluster.toyworld.config import ToyWorldConfig
from cluster.toyworld.pictures import FPS, SIDE, Scene
from cluster.toyworld.questions import Palette, ask, look_alikes
from cluster.toyworld.words import ALIASES, COLOURS, PLACES, SHAPES, Thing, called
from cluster.toyworld.world import SPLITS, Plan, plan_video
from services.questions import read_questions
from services.questions.evidence import share_asked, share_seen

SMALL = ToyWorldConfig(videos=3, held_out_videos=1, min_seconds=60, max_seconds=70)


def make(root: Path, config: ToyWorldConfig = SMALL, progress: Any = lambda *_: None) -> ToyWorld:
    return make_toy_world(config, root, progress)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ToyWorld:
    return make(tmp_path_factory.mktemp("world"))


def plans(count: int = 60, **knobs: Any) -> list[Plan]:
    """Many videos, laid out but not drawn."""
    config = ToyWorldConfig(**knobs)
    rng = np.random.default_rng(0)
    return [plan_video(config, list("ABCD"), rng) for _ in range(count)]


def asked(kind: str, **knobs: Any) -> list[tuple[Plan, Any]]:
    """Every question of that kind, with its video; those of the easy kind left out."""
    return [
        (plan, one)
        for plan in plans(**knobs)
        for place, one in enumerate(plan.asked)
        if one.kind == kind and place != plan.easy
    ]


def contents(world: ToyWorld) -> dict[str, bytes]:
    return {str(p.relative_to(world.root)): p.read_bytes() for p in sorted(world.root.rglob("*")) if p.is_file()}


def rows(world: ToyWorld, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.split(split).read_text().splitlines()]


def pictures(path: Path) -> list[np.ndarray]:
    """The picture of every second."""
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for number, frame in frames if number % FPS == 0]


def test_seed_decides_every_byte(world: ToyWorld, tmp_path: Path) -> None:
    first, again = contents(world), contents(make(tmp_path))
    other = contents(make(tmp_path, SMALL.model_copy(update={"seed": 1})))
    assert again == first
    assert other.keys() == first.keys()
    assert not {name for name in first if other[name] == first[name]}


def test_made_once(world: ToyWorld) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.root.rglob("*")}
    assert make(world.root.parent.parent) == world
    assert {path: path.stat().st_mtime_ns for path in world.root.rglob("*")} == before
    assert list(world.root.parent.iterdir()) == [world.root]


def test_second_of_two_makers_takes_the_first_ones_world(tmp_path: Path) -> None:
    """The slower maker finds the folder taken when it renames; neither leaves a draft behind."""
    config = ToyWorldConfig(videos=1, held_out_videos=0, min_seconds=30, max_seconds=30)
    inner: list[ToyWorld] = []

    def overtake(part: str, done: int, total: int) -> None:
        if not inner:
            inner.append(make(tmp_path, config))

    outer = make(tmp_path, config, overtake)
    assert inner == [outer]
    assert list(outer.root.parent.iterdir()) == [outer.root]
    assert outer.validation is None


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, SMALL, fail)
    assert list((tmp_path / "toyworld").iterdir()) == []


def test_splits_share_nothing(world: ToyWorld) -> None:
    by_split = {split: {row["video"] for row in rows(world, split)} for split in SPLITS}
    assert [len(videos) for videos in by_split.values()] == [3, 1, 1]
    assert len(set.union(*by_split.values())) == 5
    assert len({(world.root / video).read_bytes() for videos in by_split.values() for video in videos}) == 5


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_in_the_training_format(split: str, world: ToyWorld) -> None:
    written = rows(world, split)
    assert pq.read_table(world.root / f"{split}.parquet").to_pylist() == written
    assert Counter(row["answer"] for row in written) == dict.fromkeys("ABCD", len(written) // 4)
    for question in read_questions(world.split(split)):
        assert Path(question.video).is_file()
        assert len(set(question.options)) == 4
        assert question.pass_rate is not None
        assert question.moments and question.wanted_queries


def test_videos_are_h264_and_as_long_as_said(world: ToyWorld) -> None:
    for path in sorted(world.videos.iterdir()):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height, stream.average_rate) == (SIDE, SIDE, FPS)
            assert stream.duration is not None and stream.time_base is not None
            seconds = float(stream.duration * stream.time_base)
        assert 60 <= seconds <= 70
        assert len(pictures(path)) == seconds


def test_a_colour_asked_about_is_seen_in_its_moments_only(world: ToyWorld) -> None:
    found = 0
    for split in SPLITS:
        for question in read_questions(world.split(split)):
            if question.group != ("shape",):
                continue
            rgb = np.array(COLOURS[question.wanted_queries[0].split()[1]])
            for second, picture in enumerate(pictures(Path(question.video))):
                close = (np.abs(picture.astype(np.int32) - rgb).max(-1) < 30).sum()
                assert (close > 150) == bool(share_seen(question, [second])), (question.id, second)
            found += 1
    assert found


def test_pictures_of_one_thing_differ() -> None:
    rng = np.random.default_rng(0)
    thing = Thing("star", "red", "centre")
    one, other = Scene(thing, rng), Scene(thing, rng)
    assert not np.array_equal(one.picture(), one.picture())
    assert np.abs(one.picture().astype(int) - other.picture()).mean() > 10


def test_what_a_question_reserves_is_shown_by_its_moments_and_look_alikes_alone() -> None:
    for plan in plans():
        reserved = [name for one in plan.asked for name in one.names]
        assert len(set(reserved)) == len(reserved)
        for place, one in enumerate(plan.asked):
            for event in plan.events:
                if event.thing in one.moments or place == plan.easy:
                    continue
                matches = sum(name in (event.thing.shape, event.thing.colour) for name in one.names)
                assert matches < len(one.names) if one.kind == "place" else matches == 0


@pytest.mark.parametrize("most", [1, 4])
def test_needles_are_short(most: int) -> None:
    seconds = [
        event.seconds
        for plan, one in asked("colour", needle_seconds=most)
        for event in plan.events
        if event.thing in one.moments
    ]
    assert set(seconds) == set(range(1, most + 1))


def test_two_moments_are_of_unequal_length() -> None:
    for unequal in (1, 20):
        lengths = [
            sorted(sum(last - first + 1 for first, last in spans) for spans in plan.evidence(one))
            for plan, one in asked("both", unequal=unequal, two_moments=0.5, min_seconds=400)
        ]
        assert len(lengths) > 20
        assert all(unequal * short * 0.9 <= long <= unequal * short or long >= 100 for short, long in lengths)


def test_what_comes_right_after_lies_beside_what_is_named() -> None:
    for plan, one in asked("after", temporal=0.5):
        ((_, last),), ((first, _),) = plan.evidence(one)
        assert first == last + 1
        assert one.truth == one.moments[1].colour != one.moments[0].colour


@pytest.mark.parametrize("count", [0, 3])
def test_look_alikes_share_one_name(count: int) -> None:
    for plan, one in asked("place", look_alikes=count):
        shape, colour = one.names
        alike = [e for e in plan.events if (e.thing.shape == shape) != (e.thing.colour == colour)]
        assert len(alike) == count
    rng = np.random.default_rng(0)
    palette = Palette(rng)
    assert look_alikes(ask("colour", palette.reserve("colour"), palette, 1.0, "A", rng), 3, palette) == []


@pytest.mark.parametrize(("aliases", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_questions_name_things_by_words_that_no_caption_has(aliases: float, share: float) -> None:
    known = {*SHAPES, *COLOURS}
    named = [name for plan in plans(aliases=aliases) for one in plan.asked for name in one.called]
    assert np.mean([name not in known for name in named]) == pytest.approx(share, abs=0.1)
    assert ALIASES.keys() == known
    every = [alias for of_word in ALIASES.values() for alias in of_word]
    assert len(set(every)) == len(every) and not known & {word for alias in every for word in alias.split()}
    assert called("star", 1.0, np.random.default_rng(0)) in ALIASES["star"]


def test_difficulty_varies() -> None:
    none, all_of_them = plans(easy=0.0), plans(easy=1.0, temporal=0.0, two_moments=0.0)
    assert all(plan.easy is None for plan in none)
    assert all(plan.easy is not None for plan in all_of_them)
    shares = []
    for plan in all_of_them:
        (spans,) = plan.evidence(plan.asked[plan.easy or 0])
        shares.append(sum(last - first + 1 for first, last in spans) / plan.seconds)
    assert np.mean(shares) > 0.55, "any few frames show it"


def test_nominal_pass_rates_spread(tmp_path: Path) -> None:
    world = make(tmp_path, ToyWorldConfig(videos=12, held_out_videos=0, min_seconds=60, max_seconds=120))
    rates = [row["pass_rate"] for row in rows(world, "train")]
    assert min(rates) <= 0.375 and max(rates) == 1.0 and len(set(rates)) >= 4


def test_evidence_knows_what_was_seen_and_asked(world: ToyWorld) -> None:
    one = read_questions(world.split("train"))[0]
    first = [int(spans[0][0]) for spans in one.moments]
    assert (share_seen(one, first), share_seen(one, [])) == (1.0, 0.0)
    asked = [f"{query} on the screen" for query in one.wanted_queries]
    assert (share_asked(one, asked), share_asked(one, ["a cat"])) == (1.0, 0.0)


def test_places_fit_the_picture() -> None:
    assert all(29 <= x <= SIDE - 29 and 29 <= y <= SIDE - 29 for x, y in PLACES.values())
