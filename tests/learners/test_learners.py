"""Both learners as DeepSpeed actors: ranks and ZeRO stages give the same step; what is not finite stops the run."""

from __future__ import annotations

import asyncio
import json
import re
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.config import Config
from learners.config import LearnerConfig, PolicyConfig, SamplerConfig
from learners.credit import SamplerSample
from learners.group import LearnerGroup
from learners.lora import LORA_TARGETS
from learners.networks import make_network
from learners.policy import PolicyLearner
from learners.rank import LearnerRank
from learners.sampler import SamplerLearner
from services.config import DataConfig
from services.embeddings import FeatureCache
from services.errors import TrainingError, UserError
from services.schema import Embedded, Selection
from services.weights import create_store, read_version
from tests.full_disk import limit_files
from tests.learners.turns import ENV, load_plain, policy_samples, reference_log_probs, video_token


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
            weight=1 / 5,
        )
        for index in range(5)
    )


async def two_steps(
    rank_class: type[LearnerRank],
    arguments: tuple[Any, ...],
    config: LearnerConfig,
    batch: Any,
    folder: Path,
    before: Path | None,
) -> tuple[dict[str, float], dict[str, torch.Tensor], dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and published parameters of a fresh learner's first update, and those of its second.

    The state after the first is written to `folder`. Where there is one from `before`, of other ranks or another stage, the
    learner is led astray by a further update and then goes on from there.
    """
    learner = await LearnerGroup.start(rank_class, arguments, config, ENV, ["SPREAD"] * config.world_size)
    store = create_store(f"store-{rank_class.network}-{config.world_size}-{config.zero_stage}")

    async def published() -> dict[str, torch.Tensor]:
        await learner.publish(store)
        return {name: tensor.clone() for name, tensor in read_version(store, rank_class.network)[1]}

    metrics, parameters = await learner.update(batch, 1), await published()
    if before:
        await learner.update(batch, 9)
        await learner.restore(str(before), 1)
    assert await learner.snapshot() > sum(tensor.nbytes for tensor in parameters.values())
    after, _ = await asyncio.gather(learner.update(batch, 2), learner.write(str(folder)))
    return metrics, parameters, after, await published()


def shapes(base: LearnerConfig, which: Sequence[tuple[int, int]]) -> list[LearnerConfig]:
    return [
        base.model_copy(update={"world_size": ranks, "zero_stage": stage, "num_cpus": 0.5}) for ranks, stage in which
    ]


def optimizer_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Masters, moments and counts of steps by name, of whatever ranks wrote them."""
    shares = [load_file(file) for file in sorted((checkpoint / "optimizer").iterdir())]
    state = {name: tensor for share in shares for name, tensor in share.items()}
    assert len(state) == sum(map(len, shares)), "no rank writes what another one writes"
    assert any(name.startswith("exp_avg_sq/") for name in state)
    return state


def assert_same_steps(
    rank_class: type[LearnerRank],
    arguments: Any,
    configs: Sequence[LearnerConfig],
    batch: Any,
    start: dict[str, Any],
    folder: Path,
) -> None:
    """The second step of each config goes on from what the config before it wrote."""
    reference = None
    for index, config in enumerate(configs):
        here, before = folder / str(index), folder / str(index - 1) if index else None
        steps = two_steps(rank_class, arguments(config), config, batch, here, before)
        metrics, parameters, after, at_last = asyncio.run(steps)
        if reference is None:
            reference = metrics, parameters, after, at_last
            moved = max(float((parameters[name] - start[name]).abs().max()) for name in start)
            rate = metrics[f"{rank_class.network}/learning_rate"]
            assert rate / 2 < moved < 1.001 * rate, "Adam's first step is as long as the rate"
            continue
        name = f"{config.world_size} ranks at ZeRO {config.zero_stage}"
        assert metrics[f"{rank_class.network}/loss"] == pytest.approx(
            reference[0][f"{rank_class.network}/loss"], abs=1e-5
        ), name
        assert metrics[f"{rank_class.network}/grad_norm"] == pytest.approx(
            reference[0][f"{rank_class.network}/grad_norm"], rel=1e-3
        ), name
        if "policy/kl" in after:
            assert metrics["policy/kl"] == pytest.approx(0, abs=1e-6), name
            assert after["policy/kl"] == pytest.approx(reference[2]["policy/kl"], rel=1e-3), name
            assert after["policy/kl"] > 1e-5, name
        # Adam divides a gradient by its size, so the rounding of the smallest shows: 1.3e-5 and 3.4e-5 at most were seen.
        for mine, theirs, bound in ((parameters, reference[1], 2e-5), (at_last, reference[3], 5e-5)):
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert float((value - theirs[key]).abs().max()) < bound, f"{name}: {key}"
        written, restored = optimizer_state(folder / str(index - 1)), optimizer_state(here)
        assert written.keys() == restored.keys()
        for key, value in restored.items():
            torch.testing.assert_close(value, written[key], atol=0, rtol=0, msg=f"{name}: {key}")


def test_policy_ranks_and_zero_stages_take_the_same_steps_and_go_on_from_each_others(
    ray_cluster: None, toy_config: Config, tmp_path: Path
) -> None:
    base: PolicyConfig = toy_config.policy.model_copy(
        update={"learning_rate": 1e-4, "micro_batch_tokens": 60, "kl_coef": 0.1}
    )
    (sharded,) = shapes(base, [(2, 3)])
    checkpointed = sharded.model_copy(update={"gradient_checkpointing": True})
    assert_same_steps(
        PolicyLearner,
        lambda config: (config, toy_config.policy.model, 1.0, toy_config.data, toy_config.frames),
        [*shapes(base, [(1, 0), (1, 3), (2, 2)]), checkpointed],
        policy_samples(toy_config),
        load_plain(toy_config.policy.model).state_dict(),
        tmp_path,
    )


def test_a_disagreeing_engine_or_a_sample_without_its_frames_stops_the_run_and_leaves_the_weights(
    ray_cluster: None, toy_config: Config
) -> None:
    config = toy_config.policy.model_copy(
        update={"num_cpus": 0.5, "mismatch_limit": 1e-3, "mismatch_action": "stop", "lora_rank": 2, "zero_stage": 2}
    )
    samples = policy_samples(toy_config)

    async def story() -> None:
        arguments = (config, toy_config.policy.model, 1.0, toy_config.data, toy_config.frames)
        learner = await LearnerGroup.start(PolicyLearner, arguments, config, ENV, ["DEFAULT"])
        with pytest.raises(TrainingError, match="step 3: policy/mismatch_kl is .* above policy.mismatch_limit = 0.001"):
            await learner.update(samples, 3)
        turn = samples[0].turn
        visual = np.flatnonzero(turn.prompt_ids == video_token(toy_config))
        lacking = replace(samples[0], turn=replace(turn, prompt_ids=np.delete(turn.prompt_ids, visual[0])))
        with pytest.raises(TrainingError, match="turn 0: .* visual tokens in the prompt, but grids"):
            await learner.update((lacking, *samples[1:]), 4)
        store = create_store("store-mismatch")
        await learner.publish(store)
        start = dict(load_plain(toy_config.policy.model).named_parameters())
        untouched = {name: tensor.clone() for name, tensor in read_version(store, "policy")[1]}
        assert untouched.keys() == start.keys()
        for name, tensor in untouched.items():
            torch.testing.assert_close(tensor, start[name], atol=0, rtol=0)

    asyncio.run(story())


def test_lora_publishes_merged_weights_and_measures_kl_without_its_adapters(
    ray_cluster: None, toy_config: Config, tmp_path: Path
) -> None:
    config = toy_config.policy.model_copy(
        update={"num_cpus": 0.5, "lora_rank": 2, "lora_alpha": 6, "kl_coef": 0.1, "learning_rate": 1e-2,
                "freeze_vision": True, "mismatch_limit": 100.0}
    )  # fmt: skip
    samples = policy_samples(toy_config)

    async def story() -> tuple[list[dict[str, float]], dict[str, torch.Tensor], list[np.ndarray]]:
        arguments = (config, toy_config.policy.model, 1.0, toy_config.data, toy_config.frames)
        learner = await LearnerGroup.start(PolicyLearner, arguments, config, ENV, ["DEFAULT"])
        metrics = [await learner.update(samples, step) for step in (1, 2)]
        store = create_store("store-lora")
        await learner.publish(store)
        room, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        await learner.run(lambda rank: limit_files(10_000))
        with pytest.raises(UserError, match=r"full: cannot be written \(.*File too large"):
            await learner.snapshot()
            await learner.write(str(tmp_path / "full"))
        await learner.run(lambda rank: limit_files(room))
        await learner.snapshot()
        await learner.write(str(tmp_path))
        published = {name: tensor.clone() for name, tensor in read_version(store, "policy")[1]}
        return metrics, published, await learner.call(PolicyLearner.log_probs, samples[:1])

    (first, second), published, (log_probs,) = asyncio.run(story())
    assert first["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert second["policy/kl"] > 1e-5
    assert {part.rpartition("/")[2] for part in first if "zero_gradients" in part} == {"language_model"}

    start = {name: weight.detach() for name, weight in load_plain(toy_config.policy.model).named_parameters()}
    assert published.keys() == start.keys()
    adapted = {name for name in start if re.fullmatch(LORA_TARGETS + r"\.weight", name)}
    for name, tensor in published.items():
        assert (float((tensor - start[name]).abs().max()) > 1e-4) == (name in adapted), name

    assert json.loads((tmp_path / "policy" / "config.json").read_text())["dtype"] == "float32"
    end_tokens = [engine_end_tokens(folder) for folder in (toy_config.policy.model, tmp_path / "policy")]
    assert end_tokens == [[609, 610], [609, 610]]
    merged = load_plain(tmp_path / "policy")
    for name, tensor in merged.named_parameters():
        torch.testing.assert_close(tensor, published[name], atol=0, rtol=0)
    again = reference_log_probs(merged, toy_config, samples[0]).detach()
    np.testing.assert_allclose(log_probs, again, atol=1e-4, rtol=0)


def engine_end_tokens(folder: str | Path) -> Any:
    """The tokens that end a reply, as vLLM reads them."""
    from vllm.transformers_utils.config import try_get_generation_config

    generation = try_get_generation_config(str(folder), trust_remote_code=False)
    assert generation is not None
    return generation.eos_token_id


def test_sampler_ranks_and_zero_stages_take_the_same_steps_and_go_on_from_each_others(
    ray_cluster: None, tmp_path: Path
) -> None:
    base = SamplerConfig(channels=(8, 16), learning_rate=4e-3, warmup_steps=4, micro_batch_frames=50)
    assert_same_steps(
        SamplerLearner,
        lambda config: (config, "unet", 0, DataConfig(), 2),
        shapes(base, [(1, 0), (2, 2), (2, 3), (1, 1)]),
        sampler_batch(),
        make_network("unet", base, 0).state_dict(),
        tmp_path,
    )


def test_a_network_that_sees_frames_takes_the_same_steps_and_keeps_its_temperature(
    ray_cluster: None, tmp_path: Path
) -> None:
    base = SamplerConfig(width=16, learning_rate=4e-4, micro_batch_frames=50, log_prob="mean")
    data = DataConfig(cache=tmp_path / "cache")
    rng, cache = np.random.default_rng(3), FeatureCache(data.cache, "clip")

    def with_features(sample: SamplerSample) -> SamplerSample:
        queries, num_frames = sample.selection.similarity.shape
        cache.put(f"video-{num_frames}", rng.normal(size=(num_frames, 16)))
        embedded = Embedded("clip", f"video-{num_frames}", rng.normal(size=(queries, 16)).astype(np.float32))
        return replace(sample, selection=replace(sample.selection, embedded=embedded))

    assert_same_steps(
        SamplerLearner,
        lambda config: (config, "tspo", 0, data, 1000),
        shapes(base, [(1, 0), (2, 3)]),
        tuple(map(with_features, sampler_batch())),
        make_network("tspo", base, 0).state_dict(),
        tmp_path,
    )
    saved = load_file(tmp_path / "0" / "sampler" / "model.safetensors")
    assert float(saved["temperature"]) == pytest.approx(0.025 - 0.015 / 1000)


def test_what_is_not_finite_stops_the_run_and_goes_nowhere(ray_cluster: None, tmp_path: Path) -> None:
    def poison(rank: SamplerLearner) -> str:
        name, parameter = list(rank.engine.module.named_parameters())[-1]
        parameter.data[0] = torch.nan
        return name

    async def story() -> None:
        config = SamplerConfig(channels=(8,), num_cpus=0.5)
        learner = await LearnerGroup.start(
            SamplerLearner, (config, "unet", 0, DataConfig(), 9), config, ENV, ["DEFAULT"]
        )
        first, *rest = sampler_batch()
        broken = (SamplerSample(first.selection, float("nan"), 1 / 5), *rest)
        with pytest.raises(TrainingError, match="step 7: the sampler loss is nan"):
            await learner.update(broken, 7)
        store = create_store("store-nan")
        await learner.publish(store)
        name = await learner.run(poison)
        with pytest.raises(TrainingError, match=f"sampler weights of version 2: {re.escape(name)} holds NaN"):
            await learner.publish(store)
        with pytest.raises(TrainingError, match=f"sampler weights of version 2: {re.escape(name)} holds NaN"):
            await learner.snapshot()
        assert not list(tmp_path.iterdir())
        start = make_network("unet", config, 0).state_dict()
        version, tensors = read_version(store, "sampler")
        assert version == 1
        for name, tensor in tensors:
            torch.testing.assert_close(tensor, start[name], atol=0, rtol=0)

    asyncio.run(story())
