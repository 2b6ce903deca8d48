"""Both learners as DeepSpeed actors: ranks and ZeRO stages give the same step; what is not finite stops the run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cluster.checks import load_questions
from cluster.config import Config
from cluster.fleet import COMMON_ENV
from learners.config import LearnerConfig, PolicyConfig, SamplerConfig
from learners.credit import PolicyBatch, PolicySample, SamplerSample
from learners.policy import PolicyLearner
from learners.rank import LearnerGroup, LearnerRank
from learners.sampler import SamplerLearner
from services.errors import TrainingError
from services.frames import FrameCache, visual_input
from services.schema import Selection, Turn
from services.weights import create_store, read_version

ENV = COMMON_ENV | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def policy_batch(config: Config) -> PolicyBatch:
    """Seven turns of uneven lengths over real frames, and a long one without any: whatever could set ranks apart."""
    cache = FrameCache(config.data.cache, config.frames.tokens_per_frame, 60)
    video = cache.prepare(load_questions(config)[0].video)
    cache.close()
    rng = np.random.default_rng(0)
    samples = []
    for index in range(7):
        frames = sorted(rng.choice(video.num_frames, 1 + index, replace=False).tolist())
        visual = visual_input(video, frames, config.frames.tokens_per_frame)
        num_visual = (len(frames) + 1) // 2 * (visual.height // 28) * (visual.width // 28)
        prompt = np.concatenate([rng.integers(20, 300, 5), np.full(num_visual, video_token(config)), [21, 22]])
        response = rng.integers(20, 300, 3 + 2 * index)
        turn = Turn(
            prompt.astype(np.int32),
            response.astype(np.int32),
            np.full(len(response), -6.0, np.float32),
            text="",
            truncated=False,
            version=0,
            visual=visual,
        )
        samples.append(PolicySample(f"turn {index}", turn, float(rng.normal())))
    ids = rng.integers(20, 300, 400).astype(np.int32)
    alone = Turn(ids[:9], ids[9:], np.full(391, -6.0, np.float32), text="", truncated=True, version=0, visual=None)
    samples.append(PolicySample("without frames", alone, 0.3))
    return PolicyBatch(tuple(samples), num_tokens=500)


def video_token(config: Config) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(config.policy.model).video_token_id


def sampler_batch() -> tuple[SamplerSample, ...]:
    rng = np.random.default_rng(1)
    return tuple(
        SamplerSample(
            Selection(
                frames=(),
                draw=tuple(rng.permutation(20 + index)[:4].tolist()),
                log_prob=None,
                entropy=0.0,
                similarity=rng.normal(0.2, 0.05, (1 + index % 4, 20 + index)).astype(np.float32),
                version=0,
            ),
            advantage=float(rng.normal()),
        )
        for index in range(5)
    )


async def parameters_after_one_step(
    rank_class: type[LearnerRank], arguments: tuple[Any, ...], config: LearnerConfig, batch: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and published parameters of a fresh learner after one update."""
    learner = await LearnerGroup.start(rank_class, arguments, config, ENV, ["SPREAD"] * config.world_size)
    store = create_store(f"store-{rank_class.network}-{config.world_size}-{config.zero_stage}")
    metrics = await learner.update(batch, 1)
    await learner.publish(store)
    return metrics, {name: tensor.clone() for name, tensor in read_version(store, rank_class.network)[1]}


def shapes(base: LearnerConfig, which: Sequence[tuple[int, int]]) -> list[LearnerConfig]:
    return [
        base.model_copy(update={"world_size": ranks, "zero_stage": stage, "num_cpus": 0.5}) for ranks, stage in which
    ]


def assert_same_step(
    rank_class: type[LearnerRank], arguments: Any, configs: Sequence[LearnerConfig], batch: Any, start: dict[str, Any]
) -> None:
    reference = None
    for config in configs:
        metrics, parameters = asyncio.run(parameters_after_one_step(rank_class, arguments(config), config, batch))
        if reference is None:
            reference = metrics, parameters
            moved = max(float((parameters[name] - start[name]).abs().max()) for name in start)
            assert moved > config.learning_rate / 2, "a step that goes nowhere proves nothing"
            continue
        name = f"{config.world_size} ranks at ZeRO {config.zero_stage}"
        assert metrics[f"{rank_class.network}/loss"] == pytest.approx(
            reference[0][f"{rank_class.network}/loss"], abs=1e-5
        ), name
        assert metrics[f"{rank_class.network}/grad_norm"] == pytest.approx(
            reference[0][f"{rank_class.network}/grad_norm"], rel=1e-3
        ), name
        assert parameters.keys() == reference[1].keys()
        for key, value in parameters.items():
            torch.testing.assert_close(value, reference[1][key], atol=1e-5, rtol=0, msg=f"{name}: {key}")


def test_policy_ranks_and_zero_stages_take_the_same_step(ray_cluster: None, toy_config: Config) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    base: PolicyConfig = toy_config.policy.model_copy(update={"learning_rate": 1e-4, "micro_batch_tokens": 60})
    (sharded,) = shapes(base, [(2, 3)])
    checkpointed = sharded.model_copy(update={"gradient_checkpointing": True})
    assert_same_step(
        PolicyLearner,
        lambda config: (config, toy_config.policy.model, 1.0, toy_config.data, toy_config.frames),
        [*shapes(base, [(1, 0), (2, 2)]), checkpointed],
        policy_batch(toy_config),
        Qwen2_5_VLForConditionalGeneration.from_pretrained(toy_config.policy.model).state_dict(),
    )


def test_sampler_ranks_and_zero_stages_take_the_same_step(ray_cluster: None) -> None:
    from learners.unet import make_sampler

    base = SamplerConfig(channels=(8, 16), learning_rate=1e-3, micro_batch_frames=50)
    assert_same_step(
        SamplerLearner,
        lambda config: (config, 0),
        shapes(base, [(1, 0), (2, 2), (2, 3)]),
        sampler_batch(),
        make_sampler((8, 16), 0).state_dict(),
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_weights(ray_cluster: None) -> None:
    from learners.unet import make_sampler

    async def story() -> None:
        config = SamplerConfig(channels=(8,), num_cpus=0.5)
        learner = await LearnerGroup.start(SamplerLearner, (config, 0), config, ENV, ["DEFAULT"])
        first, *rest = sampler_batch()
        broken = (SamplerSample(first.selection, float("nan")), *rest)
        with pytest.raises(TrainingError, match="step 7: the sampler loss is nan"):
            await learner.update(broken, 7)
        store = create_store("store-nan")
        await learner.publish(store)
        start = make_sampler((8,), 0).state_dict()
        for name, tensor in read_version(store, "sampler")[1]:
            torch.testing.assert_close(tensor, start[name], atol=0, rtol=0)

    asyncio.run(story())
