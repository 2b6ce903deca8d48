"""A bandit for the sampler: does it learn to pick planted frames, and how noisy is its gradient?

    python -m benchmarks.bandit --seeds 3

It solves `benchmarks/puzzles.py`: no MLLM, no video; groups, credit and learner are the real ones.

Shape letters: `G` query turns of a question, `M` draws of each, `T` candidate frames, `K` chosen frames, `P` parameters.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Literal

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.puzzles import PASS_RATE_ROLLOUTS, World, play, puzzles, similarities, similarity
from cluster.config import ClusterConfig
from cluster.training.connection import COMMON_ENV, connect
from learners.config import SamplerConfig
from learners.credit import SamplerSample, sampler_batch
from learners.group import LearnerGroup
from learners.networks import make_network
from learners.plackett_luce import log_prob
from learners.sampler import SamplerLearner
from learners.unet import UNetSampler, collate
from services.config import DataConfig
from services.schema import Group
from services.selection.topk import topk_frames
from services.weights import SAMPLER, create_store, read_version

ENV = COMMON_ENV | {"OMP_NUM_THREADS": "1"}
"""Environment of the learner's process."""


def recall(world: World, score: Callable[[list[np.ndarray]], np.ndarray], seed: int, questions: int = 400) -> float:
    """Share of the planted frames among the K best scores, for the good queries of new questions.

    `score`: from matrices [4, T] to scores [B, T].
    """
    rng = np.random.default_rng((seed, 1))
    asked = puzzles(world, questions, rng)
    scores_BT = score([similarity(world, puzzle.planted, True, rng) for puzzle in asked])
    return mean(
        len(puzzle.planted.intersection(topk_frames(scores_T, world.budget))) / len(puzzle.planted)
        for puzzle, scores_T in zip(asked, scores_BT, strict=True)
    )


def logits_of(network: UNetSampler) -> Callable[[list[np.ndarray]], np.ndarray]:
    """The network as a score of frames."""

    @torch.no_grad()
    def score(matrices: list[np.ndarray]) -> np.ndarray:
        return network(collate(matrices)).numpy()

    return score


@dataclass(frozen=True)
class Training:
    """What a sampler learnt."""

    recalls: dict[int, float]
    """Held-out recall by step, before the first and after the last among them."""
    networks: dict[int, UNetSampler]
    """The network as it was then."""
    seconds: float
    """Duration of all steps, without the start of the learner and the tests of recall."""

    @property
    def before(self) -> float:
        return self.recalls[min(self.recalls)]

    @property
    def after(self) -> float:
        return self.recalls[max(self.recalls)]


async def train_bandit(
    world: World,
    config: SamplerConfig,
    seed: int,
    steps: int = 80,
    questions: int = 16,
    query_turns: int = 4,
    draws: int = 4,
    halts: Sequence[int] = (),
) -> Training:
    """Train a fresh sampler through its learner actor, on-policy: `questions` new groups of G x M trajectories a step.

    `halts`: steps before which recall is measured and the network kept, besides the first and the end.
    Needs a Ray cluster with room for the learner.
    """
    rng = np.random.default_rng((seed, 0))
    network = make_network("unet", config, seed)
    store = create_store(f"bandit-{uuid.uuid4().hex}")
    arguments = (config, "unet", seed, DataConfig(), 1)
    learner = await LearnerGroup.start(SamplerLearner, arguments, config, ENV, ["SPREAD"] * config.world_size)
    rollouts = PASS_RATE_ROLLOUTS if config.objective == "difficulty" else 0
    training = Training({}, {}, 0.0)
    seconds = 0.0
    for step in range(steps + 1):
        if step in {0, steps, *halts}:
            training.recalls[step] = recall(world, logits_of(network), seed)
            training.networks[step] = copy.deepcopy(network)
        if step < steps:
            start = time.perf_counter()
            asked = [
                (puzzle, similarities(world, puzzle, query_turns, rng))
                for puzzle in puzzles(world, questions, rng, rollouts)
            ]
            await learner.update(sampler_batch(play(world, network, asked, draws, rng), config), step)
            await learner.publish(store)
            _, tensors = read_version(store, SAMPLER)
            network.load_state_dict({name: tensor.clone() for name, tensor in tensors})
            seconds += time.perf_counter() - start
    return replace(training, seconds=seconds)


Baseline = Literal["nested", "group", "none"]


@dataclass(frozen=True)
class Estimator:
    """One way to spend G * M answers on the gradient of a question."""

    query_turns: int
    """G."""
    draws: int
    """M."""
    baseline: Baseline
    """`nested`: ours, by what queries and draws vary. `group`: the mean of all others of the group."""


def gradient_variance(
    network: UNetSampler, world: World, estimators: Sequence[Estimator], seed: int, questions: int, repeats: int
) -> dict[Estimator, Tensor]:
    """Trace of the covariance of the gradient of one question, [questions, 2]: in all, and the part given the queries.

    The network stays as it is. Every question is asked `repeats` times anew, and each time the draws (and the answers)
    are made twice from the same queries, which tells the two parts apart. Estimators that differ only in their baseline
    see the same trajectories; all of them count as one step.
    """
    rng = np.random.default_rng((seed, 2))
    asked = puzzles(world, questions, rng)
    shapes = dict.fromkeys((estimator.query_turns, estimator.draws) for estimator in estimators)
    groups: dict[tuple[int, int], list[Group]] = {shape: [] for shape in shapes}
    for puzzle in asked:
        for query_turns, draws in shapes:
            for _ in range(repeats):
                matrices = similarities(world, puzzle, query_turns, rng)
                groups[query_turns, draws] += play(world, network, [(puzzle, matrices)] * 2, draws, rng)
    traces = {}
    for estimator in estimators:
        by_group = credit(groups[estimator.query_turns, estimator.draws], estimator.baseline)
        gradients = torch.stack([gradient(network, samples) for samples in by_group])
        traces[estimator] = torch.stack(
            [_variances(of_question) for of_question in gradients.unflatten(0, (questions, repeats, 2))]
        )
    return traces


def _variances(gradients_R2P: Tensor) -> Tensor:
    """Unbiased total variance, and its part within pairs, [2]."""
    total = gradients_R2P.var(0).sum(-1).mean()
    within = gradients_R2P.var(1).sum(-1).mean()
    return torch.stack([total, within])


def credit(groups: Sequence[Group], baseline: Baseline) -> list[list[SamplerSample]]:
    """The samples of each group under a baseline; that of the whole group takes all for those of one query turn."""
    if baseline == "group":
        groups = [
            replace(group, trajectories=tuple(replace(t, query_index=0) for t in group.trajectories))
            for group in groups
        ]
    owner = {id(t.selection): index for index, group in enumerate(groups) for t in group.trajectories}
    found: list[list[SamplerSample]] = [[] for _ in groups]
    for sample in sampler_batch(groups, SamplerConfig(baseline=baseline != "none")):
        found[owner[id(sample.selection)]].append(sample)
    return found


def gradient(network: UNetSampler, samples: Sequence[SamplerSample]) -> Tensor:
    """Gradient [P] of the sampler learner's loss, `-(weight * advantage * log_prob)` summed over the samples."""
    parameters = list(network.parameters())
    if not samples:
        return torch.zeros(sum(parameter.numel() for parameter in parameters))
    matrices = {id(s.selection.similarity): s.selection.similarity for s in samples}
    rows = {key: row for row, key in enumerate(matrices)}
    logits_BT = network(collate(list(matrices.values())))
    logits_BT = logits_BT[[rows[id(s.selection.similarity)] for s in samples]]
    draws_BK = torch.tensor([s.selection.draw for s in samples])
    factors_B = torch.tensor([s.weight * s.advantage for s in samples])
    loss = -(factors_B * log_prob(logits_BT, draws_BK)).sum()
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])


def ratio(over_N: Tensor, under_N: Tensor) -> tuple[float, float]:
    """Ratio of the sums over questions, and its standard error by the jackknife that leaves one question out."""
    left_N = (over_N.sum() - over_N) / (under_N.sum() - under_N)
    size = len(left_N)
    error = ((size - 1) / size * (left_N - left_N.mean()).square().sum()).sqrt()
    return float(over_N.sum() / under_N.sum()), float(error)


def spread(
    network: UNetSampler, world: World, seed: int, questions: int = 16, query_turns: int = 4, draws: int = 32
) -> float:
    """Variance of the expected reward between a question's query turns, over that of the reward between their draws."""
    rng = np.random.default_rng((seed, 3))
    asked = [(puzzle, similarities(world, puzzle, query_turns, rng)) for puzzle in puzzles(world, questions, rng)]
    rewards = [t.reward.total for group in play(world, network, asked, draws, rng) for t in group.trajectories]
    rewards_QGM = np.reshape(rewards, (questions, query_turns, draws))
    within = rewards_QGM.var(axis=2, ddof=1).mean()
    between = rewards_QGM.mean(axis=2).var(axis=1, ddof=1).mean() - within / draws
    return float(between / within)


WORLD = World()
CONFIG = SamplerConfig(channels=(16, 32), learning_rate=2e-3, max_grad_norm=0.1)
"""What the benchmark and the tests train with; the gradient is clipped at about its size of the first steps."""

MIXED = {
    "guesses count": replace(WORLD, good=0.5),
    "only sight counts": replace(WORLD, good=0.5, guess=0.0, seen=1.0),
}
"""Worlds in which the gradient's variance is measured: half of the query turns show nothing."""

PLAIN = Estimator(16, 1, "group")
"""What all others are compared with: 16 answers a question as the others, each with queries of its own."""
ESTIMATORS = (
    PLAIN,
    Estimator(16, 1, "none"),
    *[
        Estimator(query_turns, draws, kind)
        for query_turns, draws in ((4, 4), (2, 8))
        for kind in ("group", "nested", "none")
    ],
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--questions", type=int, default=8, help="of the gradient's variance, a seed")
    parser.add_argument("--repeats", type=int, default=16, help="of each of them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    connect(ClusterConfig(object_store_gib=0.25))
    halts = (0, options.steps // 4, options.steps // 2, options.steps * 3 // 4, options.steps)
    runs: dict[str, list[Training]] = {"joint": [], "difficulty": []}
    for seed in range(options.seeds):
        for objective, trainings in runs.items():
            config = CONFIG.model_copy(update={"objective": objective})
            trainings.append(asyncio.run(train_bandit(WORLD, config, seed, options.steps, halts=halts)))
    ray.shutdown()
    console = Console()
    console.print(_recalls(runs, halts))
    for step in halts[2:]:
        networks = [training.networks[step] for training in runs["joint"]]
        for name, world in MIXED.items():
            console.print(_noise(networks, world, f"step {step}, {name}", options.questions, options.repeats))


def _recalls(runs: dict[str, list[Training]], halts: Sequence[int]) -> Table:
    steps = [f"step {step}" for step in halts]
    table = Table("objective", "seed", *steps, "s", title=f"recall at K; chance {WORLD.chance:.3f}")
    for objective, trainings in runs.items():
        for seed, training in enumerate(trainings):
            recalls = [f"{training.recalls[step]:.3f}" for step in halts]
            table.add_row(objective, str(seed), *recalls, f"{training.seconds:.1f}")
    return table


def _noise(networks: Sequence[UNetSampler], world: World, name: str, questions: int, repeats: int) -> Table:
    """Variances as ratios to the plain estimator's, over the questions of all seeds."""
    measured = [
        gradient_variance(network, world, ESTIMATORS, seed, questions, repeats) for seed, network in enumerate(networks)
    ]
    traces = {estimator: torch.cat([of_seed[estimator] for of_seed in measured]) for estimator in ESTIMATORS}
    spreads = mean(spread(network, world, seed) for seed, network in enumerate(networks))
    title = f"variance of the gradient, {name}; reward between/within queries {spreads:.2f}"
    table = Table("G x M", "baseline", "total", "draws alone", "total, of the group's", title=title)
    for estimator, trace_N2 in traces.items():
        of_plain = [_ratio(trace_N2[:, part], traces[PLAIN][:, part]) for part in (0, 1)]
        of_group = _ratio(trace_N2[:, 0], traces[replace(estimator, baseline="group")][:, 0])
        table.add_row(f"{estimator.query_turns} x {estimator.draws}", estimator.baseline, *of_plain, of_group)
    return table


def _ratio(over_N: Tensor, under_N: Tensor) -> str:
    return "{:.2f} ± {:.2f}".format(*ratio(over_N, under_N))


if __name__ == "__main__":
    main()
