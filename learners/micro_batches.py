"""The plan of micro-batches: which rank computes what in which forward pass. Every rank makes the one plan for itself.

Invariants: the plan is a function of the lengths alone, so the ranks agree without talking; every rank gets the same number of
micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence


def plan_micro_batches(
    lengths: Sequence[int], budget: int, world_size: int, padded: bool = True
) -> list[list[list[int]]]:
    """Item indices by rank and micro-batch: sorted by length, at most `budget` tokens each (or one item).

    `padded`: every item of a micro-batch takes the room of its longest. Every rank gets the same number of micro-batches;
    where they do not divide evenly the surplus ones are empty.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    room = 0
    for index in order:
        needed = lengths[batches[-1][0]] if padded and batches else lengths[index]
        if needed > room:
            batches.append([])
            needed, room = lengths[index], budget
        batches[-1].append(index)
        room -= needed
    # Few batches for many ranks: cut the fullest, so that no rank idles while another works.
    while len(batches) < world_size and max(map(len, batches)) > 1:
        fullest = max(batches, key=len)
        batches.remove(fullest)
        batches += [fullest[::2], fullest[1::2]]
    batches += [[] for _ in range(-len(batches) % world_size)]
    return [batches[rank::world_size] for rank in range(world_size)]
