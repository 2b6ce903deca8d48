"""Engines follow a learner: a model whose head is its embedding, one worker and two, versions that are incomplete or broken."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ray.actor import ActorHandle
from safetensors.torch import load_file, save_file

from actors.prompts import answer_messages, query_messages
from actors.rollout import RolloutActor
from cluster.config import Config
from cluster.dry_run import count_parameters
from cluster.exporting.export import export
from cluster.questions.stream import load_questions
from cluster.training.fleet import start
from cluster.training.placement import Placement, plan
from cluster.training.run_state import RunState
from learners.credit import PolicySample
from learners.group import LearnerGroup
from learners.mllm import load_mllm
from learners.policy import PolicyLearner
from services.checkpoints import seal
from services.errors import TrainingError, UserError
from services.frames import FrameCache
from services.schema import Question, Turn, VisualInput
from services.visual import visual_input
from services.weights import POLICY, read_version, write_bucket
from tests.learners.turns import ENV, load_plain, policy_samples, reference_log_probs

UPDATES = 3
EMBEDDING = "model.language_model.embed_tokens.weight"


@dataclass
class Story:
    """What became of one learner's versions."""

    config: Config
    published: set[str]
    """Names in the last version."""
    one_worker: list[Turn]
    """The fixed prompt under each version."""
    by_learner: list[np.ndarray]
    incomplete: dict[str, str]
    """What was said of a version that lacks a weight, by its name."""
    healed: Turn
    """The last version again, after those."""
    broken: list[str]
    """What was said of a sampled and of a greedy reply under a weight that is not a number."""
    two_workers: list[Turn]
    """An engine started from the exported checkpoint of the learner, under that and under one version more."""
    two_by_learner: np.ndarray
    """The learner's log-probs of the last reply."""
    of_text: Turn
    """A reply to a text alone, by what the learner saved."""
    saved: Path
    """The exported MLLM that the second engine was started from."""


def tie(source: str, folder: Path) -> None:
    """The model of `source` with its head for an embedding too."""
    from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

    shape = AutoConfig.from_pretrained(source)
    shape.tie_word_embeddings = True
    state = load_plain(source).state_dict()
    state[EMBEDDING] = state.pop("lm_head.weight")
    tied = Qwen2_5_VLForConditionalGeneration(shape)
    assert tied.load_state_dict(state, strict=False).unexpected_keys == []
    tied.save_pretrained(folder)
    AutoProcessor.from_pretrained(source).save_pretrained(folder)


class Engine:
    """One engine in a placement of its own, and one prompt to ask it."""

    def __init__(self, config: Config, question: Question, visual: VisualInput) -> None:
        self._config, self._prompt = config, (answer_messages(question), visual, 24)

    async def __aenter__(self) -> Engine:
        self._placement = await Placement.create(plan(self._config, ["rollouts"]), 120, print)
        self._actors = await start(self._config, self._placement, print)
        self.store, self._pool = self._actors.store, self._actors.rollouts
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._actors.close()
        self._placement.remove()

    async def ask(self, seed: int | None = 7) -> Turn:
        return await self._pool.call(RolloutActor.generate, *self._prompt, seed)

    async def ask_text(self, question: Question) -> Turn:
        return await self._pool.call(RolloutActor.generate, query_messages(question, has_video=False), None, 24, 7)

    async def pull(self, version: int) -> None:
        await self._pool.pull(version)


def is_worker(process: psutil.Process) -> bool:
    """A tensor-parallel worker of an engine on CPU."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()[0].startswith("ray::CpuWorker")
    return False


def write(store: ActorHandle, version: int, tensors: dict[str, torch.Tensor]) -> Any:
    write_bucket(store, POLICY, version, 0, tensors.items(), 60)
    return store.commit.remote(POLICY, version)


async def refusal(call: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        await call
    return str(caught.value)


async def tell(toy: Config, tmp_path: Path) -> Story:
    tie(toy.policy.model, tmp_path / "tied")
    policy = toy.policy.model_copy(
        update={"model": str(tmp_path / "tied"), "num_cpus": 0.5, "learning_rate": 1e-4, "mismatch_limit": 1e9}
    )
    config = toy.model_copy(update={"policy": policy})
    cache = FrameCache.of(config.data, config.frames)
    question = load_questions(config)[0]
    video = cache.add(question.video)
    cache.close()
    visual = visual_input(video, (1, 5, 9, 12), config.frames.tokens_per_frame)
    samples = policy_samples(config)
    arguments = (policy, policy.model, 1.0, config.data, config.frames)
    learner = await LearnerGroup.start(PolicyLearner, arguments, policy, ENV, ["DEFAULT"])

    async def log_probs(turn: Turn) -> np.ndarray:
        return (await learner.call(PolicyLearner.log_probs, [PolicySample("the prompt", turn, 1.0, 1.0)]))[0]

    async def follow(engine: Engine) -> Turn:
        """A step of the learner, published and taken in."""
        await learner.update(samples, learner.version + 1)
        await learner.publish(engine.store)
        await engine.pull(learner.version)
        return await engine.ask()

    async with Engine(config, question, visual) as engine:
        turns = [await engine.ask()]
        by_learner = [await log_probs(turns[0])]
        for _ in range(UPDATES):
            turns.append(await follow(engine))
            by_learner.append(await log_probs(turns[-1]))
        whole = {name: tensor.clone() for name, tensor in read_version(engine.store, POLICY)[1]}
        incomplete = {}
        for name in (f"model.language_model.layers.1.{part}.weight" for part in ("self_attn.k_proj", "mlp.down_proj")):
            await write(engine.store, 10, {key: tensor for key, tensor in whole.items() if key != name})
            incomplete[name] = await refusal(engine.pull(10))
        await write(engine.store, 11, whole)
        await engine.pull(11)
        healed = await engine.ask()
        spoilt = whole[EMBEDDING].clone()
        spoilt[20, 3] = torch.nan
        await write(engine.store, 12, whole | {EMBEDDING: spoilt})
        await engine.pull(12)
        broken = [await refusal(engine.ask(seed)) for seed in (7, None)]

    checkpoint = tmp_path / "checkpoints" / "step-000003"
    checkpoint.mkdir(parents=True)
    await learner.snapshot()
    await learner.write(str(checkpoint))
    RunState.start(config, {}).write(checkpoint)
    seal(checkpoint)
    export(checkpoint, tmp_path / "published")
    rollout = config.rollout.model_copy(update={"tensor_parallel": 2, "num_cpus": 0.5})
    saved = policy.model_copy(update={"model": str(tmp_path / "published" / "mllm")})
    two = config.model_copy(update={"policy": saved, "rollout": rollout})
    async with Engine(two, question, visual) as engine:
        two_workers, of_text = [await engine.ask()], await engine.ask_text(question)
        two_workers.append(await follow(engine))
        two_by_learner = await log_probs(two_workers[1])
        worker = next(child for child in psutil.Process().children(recursive=True) if is_worker(child))
        worker.kill()
        two_workers.append(await engine.ask())
    return Story(
        config, set(whole), turns, by_learner, incomplete, healed, broken, two_workers, two_by_learner,
        of_text, tmp_path / "published" / "mllm",
    )  # fmt: skip


@pytest.fixture(scope="module")
def story(ray_cluster: None, toy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Story:
    return asyncio.run(tell(toy_config, tmp_path_factory.mktemp("engines")))


def test_a_tied_head_follows_its_embedding(story: Story) -> None:
    assert EMBEDDING in story.published
    assert "lm_head.weight" not in story.published
    assert [turn.version for turn in story.one_worker] == list(range(UPDATES + 1))
    for turn, log_probs in zip(story.one_worker, story.by_learner, strict=True):
        np.testing.assert_allclose(turn.log_probs, log_probs, atol=1e-4, rtol=0)
    assert len({float(turn.log_probs[0]) for turn in story.one_worker}) == UPDATES + 1, "every update shows"
    assert min(np.abs(turn.log_probs).max() for turn in (*story.one_worker, *story.two_workers)) > 0.01, (
        "none is certain"
    )


def test_a_version_that_lacks_a_weight_is_refused_by_the_layers_name_and_the_next_whole_one_heals(story: Story) -> None:
    for name, message in story.incomplete.items():
        layer = name.removeprefix("model.language_model.").removesuffix(".weight").replace("k_proj", "qkv_proj")
        assert message == f"policy weights of version 10 lack part of language_model.model.{layer}"
    np.testing.assert_array_equal(story.healed.response_ids, story.one_worker[-1].response_ids)
    np.testing.assert_array_equal(story.healed.log_probs, story.one_worker[-1].log_probs)


def test_log_probs_that_are_not_finite_are_an_error_that_names_version_and_reply(story: Story) -> None:
    for message in story.broken:
        assert re.match("the engine's log-probs of the reply '.*' are not finite: weights of version 12 ", message)


def test_what_was_saved_of_a_tied_model_is_whole(story: Story) -> None:
    again = load_plain(story.saved)
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight
    assert count_parameters(story.config)[0] == sum(parameter.numel() for parameter in again.parameters())


def test_an_exported_mllm_has_one_log_prob_in_transformers_and_in_vllm(story: Story) -> None:
    """With the positions of the engine behind a video, and with transformers' own for text."""
    mllm, seen, text = load_plain(story.saved), story.two_workers[0], story.of_text
    with torch.no_grad():
        found = reference_log_probs(mllm, story.config, PolicySample("", seen, 1.0, 1.0)).numpy()
        ids = torch.from_numpy(np.concatenate([text.prompt_ids, text.response_ids]).astype(np.int64))
        logits = mllm(input_ids=ids[None]).logits[0, len(text.prompt_ids) - 1 : -1]
    np.testing.assert_allclose(seen.log_probs, found, atol=1e-4, rtol=0)
    of_text = logits.log_softmax(-1).gather(1, ids[len(text.prompt_ids) :, None])[:, 0].numpy()
    np.testing.assert_allclose(text.log_probs, of_text, atol=1e-4, rtol=0)
    assert seen.version == text.version == 0 and np.abs(text.log_probs).max() > 0.01


def test_a_head_that_only_the_config_ties_is_refused(story: Story, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(story.saved, tmp_path / "stale"))
    weights = load_file(folder / "model.safetensors")
    (embedding,) = [tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight")]
    save_file(weights | {"lm_head.weight": embedding + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="tie_word_embeddings.*but its weights hold another lm_head"):
        load_mllm(str(folder), "float32", story.config.policy)


def test_an_engine_of_two_workers_agrees_with_one_and_takes_updates_in(story: Story) -> None:
    started, updated, restarted = story.two_workers
    np.testing.assert_array_equal(started.response_ids, story.healed.response_ids)
    np.testing.assert_allclose(started.log_probs, story.healed.log_probs, atol=1e-4, rtol=0)
    assert (started.version, updated.version) == (0, UPDATES + 1)
    np.testing.assert_allclose(updated.log_probs, story.two_by_learner, atol=1e-4, rtol=0)
    assert restarted.version == updated.version, (
        "one of its workers was killed, and it came back with the newest weights"
    )
    np.testing.assert_array_equal(restarted.log_probs, updated.log_probs)
