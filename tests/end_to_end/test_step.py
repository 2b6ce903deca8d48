"""One training step on the real stack, told once and then looked at from every side.

decord, open_clip, the U-Net, vLLM and DeepSpeed run as in a training run; only the models and the videos are small.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.collector import Collector
from actors.prompts import answer_messages
from actors.rollout import RolloutActor
from actors.viewing import View
from cluster.config import Config
from cluster.questions.stream import load_questions
from cluster.training.fleet import Fleet, fill_caches, start
from cluster.training.learners import publish, start_learners
from cluster.training.placement import Placement, plan
from cluster.training.train import Clock, update
from learners.credit import PolicySample
from learners.policy import PolicyLearner
from services.errors import QuestionError
from services.schema import LETTERS, Group, LeftOut, Question, Turn, Video
from services.selection.uniform import uniform_frames
from services.visual import visual_input
from services.weights import POLICY, SAMPLER, read_version, write_bucket

Weights = dict[str, torch.Tensor]


@dataclass
class Accidents:
    """What became of an engine in which a step failed and a caller gave up."""

    failed: list[Turn | BaseException]
    """Two calls in flight when sampling failed."""
    steps_after_cancel: int
    """Engine steps from the moment the only caller gave up until the engine was empty."""
    afterwards: Turn
    """The fixed prompt after both."""
    unfinished: int
    """Requests that the engine holds at the end."""


@dataclass
class Story:
    """What one fleet did, in order."""

    first: list[Group]
    """Before any update."""
    first_by_learner: list[np.ndarray]
    published_same: tuple[Turn, Turn]
    """A fixed prompt before and after version 1, whose weights are those the engine started with."""
    before: tuple[Weights, Weights]
    metrics: dict[str, float]
    after: tuple[Weights, Weights]
    updated: Turn
    """The fixed prompt after the update."""
    second: list[Group]
    second_by_learner: list[np.ndarray]
    unlabelled: tuple[Question, View]
    """A question whose answer nobody knows, and how it was answered."""
    plain: list[Group]
    """Asked as in the paper's ablations."""
    images: list[Group]
    """Key frames as images behind their seconds, with subtitles between them."""
    images_by_learner: list[np.ndarray]
    doubled: list[Group]
    """Each key frame twice in the video, and the seconds in words."""
    doubled_by_learner: list[np.ndarray]
    other_vision: Turn
    """The fixed prompt after a version in which only the vision tower changed."""
    too_long: tuple[list[Group], list[LeftOut]]
    """Two questions whose prompts do not fit, in the query turn and (with its subtitles) in the answer turn, beside one that
    spells out control tokens."""
    counted: int
    """Tokens of the fixed prompt as they are counted before training."""
    accidents: Accidents
    rooms: list[str]
    """Placement groups of the weight store, of the policy's rank and of an engine."""


def turns(groups: Sequence[Group]) -> list[PolicySample]:
    """Both turns of every trajectory."""
    return [
        PolicySample(trajectory.question_id, turn, 1.0, 1.0)
        for group in groups
        for trajectory in group.trajectories
        for turn in (trajectory.query_turn, trajectory.answer_turn)
    ]


def weights(fleet: Fleet, network: str) -> Weights:
    return {name: tensor.clone() for name, tensor in read_version(fleet.store, network)[1]}


def shown(config: Config, shown_as: str) -> Config:
    """Key frames shown so, and subtitles with them."""
    frames = config.frames.model_copy(update={"shown_as": shown_as})
    return config.model_copy(
        update={"frames": frames, "prompts": config.prompts.model_copy(update={"subtitles": True})}
    )


def plainly_asked(config: Config) -> Config:
    """The paper's ablations: no previews, and CLIP asked by the question."""
    frames = config.frames.model_copy(update={"previews": False})
    prompts = config.prompts.model_copy(update={"ask_clip": "question"})
    return config.model_copy(update={"frames": frames, "prompts": prompts})


def collector(fleet: Fleet, config: Config, videos: Mapping[str, Video]) -> Collector:
    viewing = fleet.viewing(fleet.turns(config, videos))
    return Collector(viewing, config.frames.budget, config.rewards, config.train.seed)


def fail_one_step(actor: RolloutActor) -> None:
    """The next forward pass succeeds and its sampling raises, once."""
    runner = engine_of(actor).engine_core.engine_core.model_executor.driver_worker.worker.model_runner

    def fail(*_: Any, **__: Any) -> None:
        del runner._sample
        raise RuntimeError("a kernel failed")

    runner._sample = fail


def hold_steps(actor: RolloutActor) -> None:
    """Every step waits for `release_steps`, and is counted."""
    engine = engine_of(actor)
    engine.released, engine.steps = threading.Event(), 0

    def step() -> Any:
        engine.released.wait()
        engine.steps += 1
        return type(engine).step(engine)

    engine.step = step


def release_steps(actor: RolloutActor) -> None:
    engine_of(actor).released.set()


def count_steps(actor: RolloutActor) -> int:
    engine = engine_of(actor)
    del engine.step
    return engine.steps


def engine_of(actor: RolloutActor) -> Any:
    return actor._loop.engine


def unfinished(actor: RolloutActor) -> int:
    return engine_of(actor).get_num_unfinished_requests()


def room(_: Any) -> str:
    return ray.get_runtime_context().get_placement_group_id()


async def have_accidents(fleet: Fleet, prompt: Callable[[], Awaitable[Turn]]) -> Accidents:
    (actor,) = fleet.rollouts.actors

    async def inside(function: Callable[[RolloutActor], Any]) -> Any:
        return await actor.__ray_call__.remote(function)

    await inside(fail_one_step)
    failed = await asyncio.gather(prompt(), prompt(), return_exceptions=True)
    await inside(hold_steps)
    given_up = asyncio.ensure_future(prompt())
    while await inside(unfinished) == 0:
        await asyncio.sleep(0.01)
    given_up.cancel()
    while not await inside(lambda actor: all(future.cancelled() for future in actor._loop._running.values())):
        await asyncio.sleep(0.01)
    await inside(release_steps)
    while await inside(unfinished) > 0:
        await asyncio.sleep(0.01)
    steps = await inside(count_steps)
    return Accidents(failed, steps, await prompt(), await inside(unfinished))


async def tell(config: Config, subtitles: Path) -> Story:
    placement = await Placement.create(plan(config), 120, print)
    fleet = await start(shown(config, "images"), placement, print)  # whose engine takes all
    learners = await start_learners(config, placement, print)
    policy, sampler = learners.policy, learners.sampler
    assert policy is not None
    assert sampler is not None
    questions = load_questions(config)[:3]
    videos, unreadable = await fill_caches(fleet.embedders, questions, 60, lambda ready, total: ready)
    assert not unreadable
    collect = collector(fleet, config, videos)
    video = videos[questions[0].video]
    visual = visual_input(video, uniform_frames(video.num_frames, 8), config.frames.tokens_per_frame)

    async def fixed_prompt() -> Turn:
        return await fleet.rollouts.call(RolloutActor.generate, answer_messages(questions[0]), visual, 24, 7)

    first, _ = await collect.collect(questions, 4, draws=1, step=1)
    first_by_learner = await policy.call(PolicyLearner.log_probs, turns(first))
    started = await fixed_prompt()
    await policy.publish(fleet.store)
    await fleet.rollouts.pull(policy.version)
    await sampler.publish(fleet.store)
    await fleet.selectors.pull(sampler.version)
    same = await fixed_prompt()
    before = weights(fleet, POLICY), weights(fleet, SAMPLER)

    metrics = await update(learners, config, first, 1, Clock())
    await publish(learners, fleet)
    after = weights(fleet, POLICY), weights(fleet, SAMPLER)
    updated = await fixed_prompt()
    second, _ = await collect.collect(questions, 2, draws=2, step=2)
    second_by_learner = await policy.call(PolicyLearner.log_probs, turns(second))
    unlabelled = replace(questions[0], answer=None)
    view = await fleet.viewing(fleet.turns(config, videos)).view(unlabelled, budget=4)
    spoken = [replace(questions[0], subtitles=str(subtitles)), questions[1]]
    asked = collector(fleet, plainly_asked(config), videos)
    plain, _ = await asked.collect(questions[:1], 1, draws=1, step=2)
    images, _ = await collector(fleet, shown(config, "images"), videos).collect(spoken, 2, draws=1, step=2)
    images_by_learner = await policy.call(PolicyLearner.log_probs, turns(images))
    doubled, _ = await collector(fleet, shown(config, "doubled"), videos).collect(spoken, 2, draws=1, step=2)
    doubled_by_learner = await policy.call(PolicyLearner.log_probs, turns(doubled))

    vision_only = [(name, -tensor if "visual." in name else tensor) for name, tensor in after[0].items()]
    write_bucket(fleet.store, POLICY, 3, 0, vision_only, 60)
    await fleet.store.commit.remote(POLICY, 3)
    await fleet.rollouts.pull(3)
    other_vision = await fixed_prompt()
    endless = replace(questions[0], question="star " * 5000)
    talkative = replace(questions[0], id="talkative", subtitles=str(subtitles.with_name("long.srt")))
    spelled = replace(questions[0], id="spelled", question="What is <|video_pad|> <|image_pad|><|im_end|>?")
    too_long = await collector(fleet, shown(config, "images"), videos).collect(
        [endless, talkative, spelled], 2, draws=1, step=3
    )
    checks = fleet.turns(config, videos)
    with pytest.raises(QuestionError):
        await checks.check(endless)
    await checks.check(talkative)  # what is said at which frames is not known before
    counted = await fleet.rollouts.call(RolloutActor.check, answer_messages(questions[0]), visual)
    accidents = await have_accidents(fleet, fixed_prompt)
    placed = (fleet.store, policy._ranks[0], fleet.rollouts.actors[0])
    rooms = [await actor.__ray_call__.remote(room) for actor in placed]
    fleet.close()
    placement.remove()
    return Story(
        first,
        first_by_learner,
        (started, same),
        before,
        metrics,
        after,
        updated,
        second,
        second_by_learner,
        (unlabelled, view),
        plain,
        images,
        images_by_learner,
        doubled,
        doubled_by_learner,
        other_vision,
        too_long,
        counted,
        accidents,
        rooms,
    )


@pytest.fixture(scope="module")
def story(ray_cluster: None, toy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    subtitles = tmp_path_factory.mktemp("subtitles") / "all.srt"
    subtitles.write_text("1\n00:00:00,000 --> 01:00:00,000\nhere comes the star\n")
    subtitles.with_name("long.srt").write_text(f"1\n00:00:00,000 --> 01:00:00,000\n{'star ' * 600}\n")
    yield asyncio.run(tell(toy_config, subtitles))


@pytest.mark.parametrize("network", [0, 1], ids=["policy", "sampler"])
def test_the_update_changes_the_parameters(story: Story, network: int) -> None:
    before, after = story.before[network], story.after[network]
    assert before.keys() == after.keys()
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-5


def test_the_versions_move_and_every_trajectory_carries_them(story: Story) -> None:
    assert story.metrics["policy/version"] == story.metrics["sampler/version"] == 2
    for version, groups in ((0, story.first), (2, story.second)):
        for trajectory in (t for group in groups for t in group.trajectories):
            assert trajectory.query_turn.version == trajectory.answer_turn.version == version
            assert trajectory.selection.version == version


@pytest.mark.parametrize(
    ("when", "count"), [("first", 3 * 4 * 2), ("second", 3 * 4 * 2), ("images", 2 * 2 * 2), ("doubled", 2 * 2 * 2)]
)
def test_engine_and_learner_agree_on_the_sampled_tokens(story: Story, when: str, count: int) -> None:
    """Before the update, after it, and of frames shown as images, or twice in a video."""
    samples, by_learner = turns(getattr(story, when)), getattr(story, f"{when}_by_learner")
    assert len(samples) == count
    for sample, log_probs in zip(samples, by_learner, strict=True):
        assert len(sample.turn.response_ids) > 0
        np.testing.assert_allclose(log_probs, sample.turn.log_probs, atol=1e-4, rtol=0)


def test_images_stand_behind_their_seconds_with_subtitles_between(story: Story, toy_config: Config) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy_config.policy.model)
    for group in story.images:
        for trajectory in group.trajectories:
            prompt = tokenizer.decode(trajectory.answer_turn.prompt_ids.tolist())
            stamps = [int(second) for second in re.findall(r"(\d+) s: <.vision_start.>(?:<.image_pad.>)+<", prompt)]
            assert tuple(stamps) == trajectory.selection.frames
            assert ("Subtitle: here comes the star" in prompt) == (group.question.subtitles is not None)
            assert "<|image_pad|>" not in tokenizer.decode(trajectory.query_turn.prompt_ids.tolist())


def test_doubled_frames_share_no_token_and_their_seconds_are_said(story: Story, toy_config: Config) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy_config.policy.model)
    for trajectory in (one for group in story.doubled for one in group.trajectories):
        turn, frames = trajectory.answer_turn, trajectory.selection.frames
        assert turn.visual is not None
        pad = tokenizer.convert_tokens_to_ids("<|video_pad|>")
        tokens = (turn.visual.height // 28) * (turn.visual.width // 28) * len(frames)
        assert (turn.prompt_ids == pad).sum() == turn.visual.num_tokens == tokens
        assert f"Seconds of the frames: {', '.join(map(str, frames))}" in tokenizer.decode(turn.prompt_ids.tolist())


def test_without_previews_and_with_the_question_as_the_only_query(story: Story) -> None:
    (group,) = story.plain
    (trajectory,) = group.trajectories
    assert trajectory.query_turn.visual is None
    assert trajectory.query_turn.response_ids.size > 0
    assert trajectory.queries == (group.question.question,)
    assert trajectory.selection.similarity.shape[0] == 1


def test_a_question_without_an_answer_is_answered(story: Story) -> None:
    question, view = story.unlabelled
    assert question.answer is None
    assert view.answer.turn.visual is not None
    assert view.answer.turn.visual.frames == view.selection.frames
    assert len(view.selection.frames) == 4
    assert view.selection.draw == ()
    assert view.selection.similarity.shape[0] == len(view.queries.texts)
    assert view.answer.letter in LETTERS[: len(question.options)]


def test_draws_share_their_query_turn_and_nothing_else(story: Story) -> None:
    for group in story.second:
        assert [trajectory.index for trajectory in group.trajectories] == [0, 1, 2, 3]
        assert [len(sharing) for sharing in group.by_query_turn] == [2, 2]
        for one, other in group.by_query_turn:
            assert one.query_turn is other.query_turn
            assert one.selection.draw != other.selection.draw
        first, second = (sharing[0].query_turn for sharing in group.by_query_turn)
        assert first is not second


def test_identical_weights_sent_again_change_nothing(story: Story) -> None:
    started, same = story.published_same
    assert (started.version, same.version) == (0, 1)
    np.testing.assert_array_equal(started.response_ids, same.response_ids)
    np.testing.assert_array_equal(started.log_probs, same.log_probs)


def test_the_engine_takes_the_update_in(story: Story) -> None:
    assert story.updated.version == 2
    assert log_prob_gap(story.published_same[1], story.updated) > 1e-4


def test_a_video_seen_before_is_not_scored_with_stale_features(story: Story) -> None:
    assert story.other_vision.version == 3
    assert log_prob_gap(story.updated, story.other_vision) > 1e-4


def log_prob_gap(one: Turn, other: Turn) -> float:
    """Largest difference of the log-probs; infinite where one seed led to other tokens."""
    if not np.array_equal(one.response_ids, other.response_ids):
        return math.inf
    return float(np.abs(one.log_probs - other.log_probs).max())


def test_the_sampler_starts_uniform_and_draws_k_frames(story: Story) -> None:
    for trajectory in (t for group in story.first for t in group.trajectories):
        selection = trajectory.selection
        num_frames = selection.similarity.shape[1]
        assert selection.entropy == pytest.approx(math.log(num_frames), abs=1e-5)
        assert selection.log_prob == pytest.approx(-sum(math.log(num_frames - place) for place in range(8)), abs=1e-3)
        assert len(set(selection.draw)) == 8
        assert selection.frames == tuple(sorted(selection.draw))
        assert trajectory.answer_turn.visual is not None
        assert trajectory.answer_turn.visual.frames == selection.frames


def test_no_pixel_comes_to_the_driver(story: Story) -> None:
    frames = 8 * 56 * 56 * 3
    for group in story.first:
        for trajectory in group.trajectories:
            assert len(pickle.dumps(trajectory)) < frames / 4


def test_a_prompt_that_does_not_fit_costs_its_question_alone(story: Story) -> None:
    groups, left_out = story.too_long
    assert [group.question.id for group in groups] == ["spelled"]
    assert len(left_out) == 2
    for loss in left_out:
        assert re.match(r"the engine refuses the prompt: .*512.*rollout.max_model_len", loss.reason)


def test_control_tokens_in_a_question_are_text(story: Story, toy_config: Config) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy_config.policy.model)
    for sample in turns(story.too_long[0]):
        usual = next(turn for turn in turns(story.images) if turn.turn.visual.shown_as == sample.turn.visual.shown_as)
        for token in ("<|video_pad|>", "<|image_pad|>", "<|im_end|>"):
            known = tokenizer.convert_tokens_to_ids(token)
            assert (sample.turn.prompt_ids == known).sum() == (usual.turn.prompt_ids == known).sum()
        assert "<|video_pad|> <|image_pad|><|im_end|>?" in tokenizer.decode(sample.turn.prompt_ids.tolist())


def test_a_prompt_is_counted_before_as_the_engine_sees_it(story: Story) -> None:
    assert story.counted == len(story.updated.prompt_ids)


def test_a_failed_step_and_a_caller_who_gave_up_leave_an_engine_that_serves(story: Story) -> None:
    accidents = story.accidents
    errors = [outcome for outcome in accidents.failed if isinstance(outcome, BaseException)]
    assert errors, "the step failed for whoever was in it"
    assert all("a kernel failed" in str(error) for error in errors)
    assert accidents.steps_after_cancel == 1, "the step that had begun; the request did not run to its end"
    assert log_prob_gap(story.other_vision, accidents.afterwards) == 0
    assert accidents.unfinished == 0


def test_the_weight_store_sits_beside_the_rank_that_writes_to_it(story: Story) -> None:
    store, rank, engine = story.rooms
    assert store == rank != engine
