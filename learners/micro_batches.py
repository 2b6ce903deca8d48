"""The plan of micro-batches: which rank computes what in which forward pass. Every rank makes the same plan for itself.

Invariants: the plan is a function of the lengths alone, so the ranks agree without talking; every rank gets the same number of
micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence


def plan_micro_batches(
    lengths: Sequence[int], budget: int, world_size: int, padded: bool = True
) -> list[list[list[int]]]:
    """For each rank its micro-batches, and for each micro-batch the indices of its items.

    Items are sorted by length; a micro-batch holds at most `budget` tokens, or a single longer item. With `padded` every item
    takes the room of the longest in its micro-batch. Where the micro-batches do not divide evenly, some ranks get empty ones.
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
    # With fewer batches than ranks, the fullest are halved, so that no rank idles while another works.
    while len(batches) < world_size and max(map(len, batches)) > 1:
        fullest = max(batches, key=len)
        batches.remove(fullest)
        batches += [fullest[::2], fullest[1::2]]
    batches += [[] for _ in range(-len(batches) % world_size)]
    return [batches[rank::world_size] for rank in range(world_size)]
