"""Both learners as DeepSpeed actors: ranks and ZeRO stages give the same step; what is not finite stops the run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.checks import load_questions
from cluster.config import Config
from cluster.connection import COMMON_ENV
from learners.config import LearnerConfig, PolicyConfig, SamplerConfig
from learners.credit import PolicySample, SamplerSample
from learners.mllm import LORA_TARGETS
from learners.policy import PolicyLearner
from learners.positions import mrope_positions, seconds_per_grid
from learners.rank import LearnerGroup, LearnerRank
from learners.sampler import SamplerLearner
from services.errors import TrainingError
from services.frames import FrameCache, read_visual, visual_input
from services.schema import Selection, Turn, VisualInput
from services.vision import FrameProcessor
from services.weights import create_store, read_version

ENV = COMMON_ENV | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def policy_samples(config: Config) -> tuple[PolicySample, ...]:
    """Eight turns: three that share a prompt and its frames, four uneven ones over other frames, and a long one without any:
    whatever could set ranks apart."""
    cache = FrameCache(config.data.cache, config.frames.tokens_per_frame, 60)
    video = cache.prepare(load_questions(config)[0].video)
    cache.close()
    rng = np.random.default_rng(0)
    samples: list[PolicySample] = []

    def add(prompt: np.ndarray, response: int, visual: VisualInput | None) -> None:
        turn = Turn(
            prompt.astype(np.int32),
            rng.integers(20, 300, response).astype(np.int32),
            rng.normal(-5.7, 0.3, response).astype(np.float32),
            text="",
            truncated=False,
            version=0,
            visual=visual,
        )
        weight = 1 / (20 + 4 * len(samples))
        samples.append(PolicySample(f"turn {len(samples)}", turn, float(rng.normal()), weight))

    for frames, responses in ((5, (4, 9, 2)), (1, (3,)), (2, (7,)), (8, (13,)), (3, (5,))):
        visual = visual_input(video, np.linspace(1, 20, frames).astype(int).tolist(), config.frames.tokens_per_frame)
        num_visual = (frames + 1) // 2 * (visual.height // 28) * (visual.width // 28)
        prompt = np.concatenate([rng.integers(20, 300, 5), np.full(num_visual, video_token(config)), [21, 22]])
        for response in responses:
            add(prompt, response, visual)
    add(rng.integers(20, 300, 9), 391, None)
    return tuple(samples)


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
            weight=1 / 5,
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
    base: PolicyConfig = toy_config.policy.model_copy(update={"learning_rate": 1e-4, "micro_batch_tokens": 60})
    (sharded,) = shapes(base, [(2, 3)])
    checkpointed = sharded.model_copy(update={"gradient_checkpointing": True})
    assert_same_step(
        PolicyLearner,
        lambda config: (config, toy_config.policy.model, 1.0, toy_config.data, toy_config.frames),
        [*shapes(base, [(1, 0), (2, 2)]), checkpointed],
        policy_samples(toy_config),
        load_plain(toy_config.policy.model).state_dict(),
    )


class ProbedPolicy(PolicyLearner):
    """A rank that tells its gradients instead of taking the step, under any config it is given."""

    def probe(self, changes: dict[str, Any], samples: Sequence[PolicySample]) -> tuple[dict[str, float], Any]:
        """Metrics and gradients of one update; the weights stay."""
        before, self.config = self.config, self.config.model_copy(update=changes)
        if self.config.gradient_checkpointing:
            self.engine.module.mllm.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.engine.module.mllm.gradient_checkpointing_disable()
        metrics = self.update(samples, 1)
        self.config = before
        return metrics, self.gradients

    def take_step(self, step: int) -> dict[str, float]:
        from deepspeed.utils import safe_get_full_grad

        zeros = self._zero_gradients()
        full = safe_get_full_grad if self.config.zero_stage else (lambda parameter: parameter.grad)
        named = [(name, p) for name, p in self.engine.module.mllm.named_parameters() if p.requires_grad]
        self.gradients = {name: full(parameter).clone() for name, parameter in named}
        self.engine.module.zero_grad()
        return zeros


def load_plain(folder: str | Path) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def reference_log_probs(mllm: Any, config: Config, sample: PolicySample) -> torch.Tensor:
    """Log-probs [R] of a turn's response by transformers alone, all its logits at once."""
    cache = FrameCache(config.data.cache, config.frames.tokens_per_frame, 60)
    turn, grids, steps, inputs = sample.turn, [], [], {}
    ids = np.concatenate([turn.prompt_ids, turn.response_ids]).astype(np.int64)
    if turn.visual is not None:
        rows, ((t, h, w),) = FrameProcessor(config.policy.model).patches(read_visual(cache, turn.visual), "video")
        inputs = {"pixel_values_videos": rows, "video_grid_thw": torch.tensor([[t, h, w]])}
        grids, seconds = [(t, h // 2, w // 2)], seconds_per_grid(len(turn.visual.frames), turn.visual.num_frames, 2)
        steps = [seconds * mllm.config.vision_config.tokens_per_second]
    positions = mrope_positions(ids == mllm.config.video_token_id, grids, steps)
    position_ids = torch.from_numpy(positions)[:, None]
    logits = mllm(input_ids=torch.from_numpy(ids)[None], position_ids=position_ids, **inputs).logits[0]
    first = len(turn.prompt_ids) - 1
    return logits[first:-1].log_softmax(-1).gather(1, torch.from_numpy(ids)[first + 1 :, None])[:, 0]


def reference_gradients(
    config: Config, samples: Sequence[PolicySample], corrected: bool = False
) -> dict[str, torch.Tensor]:
    """By transformers alone: each turn by itself, its own attention, all logits at once, the loss written out.

    `corrected`: the plain policy gradient of the learner's own distribution, weights of at most 2 for the engine's.
    """
    mllm = load_plain(config.policy.model)
    for sample in samples:
        log_probs = reference_log_probs(mllm, config, sample)
        turn = sample.turn
        ratio = (log_probs - torch.from_numpy(turn.log_probs)).exp()
        if corrected:
            loss = -sample.advantage * ratio.detach().clamp(max=2) * log_probs
        else:
            loss = -torch.minimum(sample.advantage * ratio, sample.advantage * ratio.clamp(0.8, 1.2))
            if sample.advantage < 0:
                loss = loss.clamp(max=-3 * sample.advantage)
        (sample.weight * loss.sum()).backward()
    return {name: parameter.grad for name, parameter in mllm.named_parameters()}


async def probed(config: PolicyConfig, toy: Config, changes: Sequence[dict[str, Any]], samples: Any) -> list[Any]:
    """What a fresh learner of `config` tells under each of `changes`."""
    arguments = (config, toy.policy.model, 1.0, toy.data, toy.frames)
    learner = await LearnerGroup.start(ProbedPolicy, arguments, config, ENV, ["SPREAD"] * config.world_size)
    return [await learner.call("probe", change, samples) for change in changes]


def assert_same_gradients(way: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=0, msg=f"{way}: {name}")


def test_no_optimisation_and_no_split_changes_the_gradients(ray_cluster: None, toy_config: Config) -> None:
    samples = policy_samples(toy_config)
    expected, corrected = (reference_gradients(toy_config, samples, how) for how in (False, True))
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.05, "too small to compare"
    base: PolicyConfig = toy_config.policy.model_copy(update={"num_cpus": 0.5, "micro_batch_tokens": 10**6})
    ways: dict[str, dict[str, Any]] = {
        "packed, prompts shared, one pass of 8": {},
        "prompts not shared": {"share_prompts": False},
        "not packed: every turn alone": {"micro_batch_tokens": 1},
        "several passes": {"micro_batch_tokens": 60},
        "checkpointed": {"gradient_checkpointing": True},
    }
    others: dict[str, dict[str, Any]] = {
        "corrected": {"old_log_probs": "learner"},
        "corrected, several passes": {"old_log_probs": "learner", "micro_batch_tokens": 60},
        "gspo": {"loss": "gspo"},
        "gspo, several passes": {"loss": "gspo", "micro_batch_tokens": 60},
    }
    changes = [*ways.values(), *others.values()]
    found = dict(zip([*ways, *others], asyncio.run(probed(base, toy_config, changes, samples)), strict=True))
    # The KL to the model itself is 0 and pulls nowhere, so its second network must not show.
    ranks = base.model_copy(update={"world_size": 2, "zero_stage": 3, "kl_coef": 0.5})
    (found["2 ranks of 4"],) = asyncio.run(probed(ranks, toy_config, [{}], samples))

    for way in (*ways, "2 ranks of 4"):
        metrics, gradients = found[way]
        assert metrics["policy/loss"] == pytest.approx(
            found["not packed: every turn alone"][0]["policy/loss"], abs=1e-5
        )
        assert_same_gradients(way, gradients, expected)
        for part in ("visual", "language_model", "embed_tokens"):
            assert metrics[f"policy/zero_gradients/{part}"] == 0.0, f"{way}: {part}"
    assert found["2 ranks of 4"][0]["policy/kl"] == pytest.approx(0, abs=1e-6)
    for way in ("corrected", "corrected, several passes"):
        assert_same_gradients(way, found[way][1], corrected)
        assert found[way][0]["policy/clip_share"] == 0
        assert 0 < found[way][0]["policy/truncated_share"] < 1
    assert_same_gradients("gspo", found["gspo"][1], found["gspo, several passes"][1])

    tokens = {way: metrics["policy/computed_tokens"] for way, (metrics, _) in found.items()}
    assert tokens["packed, prompts shared, one pass of 8"] < tokens["prompts not shared"]
    assert {metrics["policy/tokens"] for metrics, _ in found.values()} == {4 + 9 + 2 + 3 + 7 + 13 + 5 + 391}
    assert found["gspo"][0]["policy/mismatch_max_ratio"] > 1
    assert 0 < found["packed, prompts shared, one pass of 8"][0]["policy/clip_share"] < 1


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
        await learner.call("save", str(tmp_path / "policy"))
        published = {name: tensor.clone() for name, tensor in read_version(store, "policy")[1]}
        return metrics, published, await learner.call("log_probs", samples[:1])

    (first, second), published, (log_probs,) = asyncio.run(story())
    assert first["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert second["policy/kl"] > 1e-5
    assert {part.rpartition("/")[2] for part in first if "zero_gradients" in part} == {"language_model"}

    start = {name: weight.detach() for name, weight in load_plain(toy_config.policy.model).named_parameters()}
    assert published.keys() == start.keys()
    adapted = {name for name in start if re.fullmatch(LORA_TARGETS + r"\.weight", name)}
    for name, tensor in published.items():
        assert (float((tensor - start[name]).abs().max()) > 1e-4) == (name in adapted), name

    merged = load_plain(tmp_path / "policy")
    for name, tensor in merged.named_parameters():
        torch.testing.assert_close(tensor, published[name], atol=0, rtol=0)
    again = reference_log_probs(merged, toy_config, samples[0]).detach()
    np.testing.assert_allclose(log_probs, again, atol=1e-4, rtol=0)


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
        broken = (SamplerSample(first.selection, float("nan"), 1 / 5), *rest)
        with pytest.raises(TrainingError, match="step 7: the sampler loss is nan"):
            await learner.update(broken, 7)
        store = create_store("store-nan")
        await learner.publish(store)
        start = make_sampler((8,), 0).state_dict()
        for name, tensor in read_version(store, "sampler")[1]:
            torch.testing.assert_close(tensor, start[name], atol=0, rtol=0)

    asyncio.run(story())
