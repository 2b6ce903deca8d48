"""The bandit's puzzles, and the playing of them: in place of an MLLM and videos, for benchmarks and tests of the sampler.

A question's world is T frames, a few of which are planted; of its query turns some raise the planted frames above the
noise in some rows of the similarity matrix, the others see noise alone. The more planted frames the answerer is shown,
the likelier it is right; shown none it guesses. Groups and their rewards are the real ones' types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch

from learners.config import RewardConfig
from learners.plackett_luce import entropy, log_prob, sample
from learners.unet import MAX_QUERIES, UNetSampler, collate
from services.schema import Group, Question, Reward, Selection, Trajectory, Turn

NO_TURN = Turn(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), "", False, 0, None)

PASS_RATE_ROLLOUTS = 16
"""Answers from uniform draws that a pass rate is measured by."""

ACCURACY = RewardConfig().accuracy


@dataclass(frozen=True)
class World:
    """What the sampler is up against."""

    num_frames: int = 60
    """T."""
    budget: int = 4
    """K."""
    longest: int = 3
    """Consecutive frames planted in a question: 1…longest, at most K, so that a recall of 1 is possible."""
    contrast: float = 5.0
    """Standard deviations of a row's noise by which a good query raises the planted frames."""
    rows: int = 2
    """Rows of a good query, of 4 and anywhere among them, that show the planted frames."""
    good: float = 0.75
    """Share of good query turns."""
    seen: float = 0.95
    """Chance of a right answer when all planted frames are among the K …"""
    guess: float = 0.1
    """… and when none is; in between by their share, so that the reward asks for what recall measures."""

    @property
    def chance(self) -> float:
        """Expected recall of K frames drawn uniformly."""
        return self.budget / self.num_frames


@dataclass(frozen=True)
class Puzzle:
    """A question, and what the bandit alone knows of it."""

    question: Question
    planted: frozenset[int]


def puzzles(world: World, count: int, rng: np.random.Generator, rollouts: int = 0) -> list[Puzzle]:
    """`count` new questions; with `rollouts` > 0 each with the pass rate of so many answers from uniform draws."""
    made = []
    for index in range(count):
        length = int(rng.integers(1, world.longest + 1))
        start = int(rng.integers(world.num_frames - length + 1))
        planted = frozenset(range(start, start + length))
        rights = [
            answers_right(world, planted, rng.permutation(world.num_frames)[: world.budget].tolist(), rng)
            for _ in range(rollouts)
        ]
        question = Question(f"q{index}", "", "", ("right", "wrong"), "A", mean(rights) if rights else None)
        made.append(Puzzle(question, planted))
    return made


def similarity(world: World, planted: frozenset[int], good: bool, rng: np.random.Generator) -> np.ndarray:
    """[4, T] float32 cosines around 0.2; a good query turn has rows, anywhere, in which the planted frames are raised."""
    noise = rng.normal(size=(MAX_QUERIES, world.num_frames))
    if good:
        rows = rng.permutation(MAX_QUERIES)[: world.rows]
        noise[np.ix_(rows, sorted(planted))] += world.contrast
    return (0.2 + 0.02 * noise).astype(np.float32)


def answers_right(world: World, planted: frozenset[int], frames: Sequence[int], rng: np.random.Generator) -> bool:
    """Whether the answerer that sees `frames` is right; every planted frame among them adds the same to the chance."""
    share = len(planted.intersection(frames)) / len(planted)
    return bool(rng.random() < world.guess + (world.seen - world.guess) * share)


def similarities(world: World, puzzle: Puzzle, query_turns: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The matrices of `query_turns` query turns, each good with chance `world.good`."""
    return [similarity(world, puzzle.planted, bool(rng.random() < world.good), rng) for _ in range(query_turns)]


def play(
    world: World,
    network: UNetSampler,
    asked: Sequence[tuple[Puzzle, Sequence[np.ndarray]]],
    draws: int,
    rng: np.random.Generator,
) -> list[Group]:
    """A group for each puzzle and its similarity matrices: `draws` draws of each from the network's logits, answered."""
    matrices = [matrix for _, of_puzzle in asked for matrix in of_puzzle]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    with torch.no_grad():
        logits_BT = network(collate(matrices)).repeat_interleave(draws, dim=0)
    chosen_BK = sample(logits_BT, world.budget, generator)
    numbers = zip(log_prob(logits_BT, chosen_BK).tolist(), entropy(logits_BT).tolist(), strict=True)
    selections = (
        Selection(tuple(sorted(draw)), tuple(draw), score, spread, matrices[place // draws], version=0)
        for place, (draw, (score, spread)) in enumerate(zip(chosen_BK.tolist(), numbers, strict=True))
    )
    groups = []
    for puzzle, of_puzzle in asked:
        trajectories = []
        for index in range(len(of_puzzle) * draws):
            selection = next(selections)
            right = answers_right(world, puzzle.planted, selection.frames, rng)
            trajectories.append(
                Trajectory(
                    puzzle.question.id,
                    index,
                    index // draws,
                    NO_TURN,
                    ("",) * MAX_QUERIES,
                    False,
                    selection,
                    NO_TURN,
                    "A" if right else "B",
                    Reward({"accuracy": ACCURACY * right}),
                )
            )
        groups.append(Group(puzzle.question, tuple(trajectories)))
    return groups
