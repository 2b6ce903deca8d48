"""Video-MME-v2's groups of four questions, each scored as a whole.

A group is about one video, in the order of its questions' ids (`001-1` … `001-4`). In a consistency group (`relevance`) k right
answers of four score (k/4)². In a `logic` group only the right answers up to the first wrong one count, by the structure of its
steps. (The authors' script counts an unparsable reply as a step that is passed; here it is a wrong answer.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from services.errors import UserError
from services.scoring.predictions import Prediction

SIZE = 4
GROUP = "group type"
"""The dimension of a question's groups that says how its group of four is scored."""

_CHAINS: Mapping[str, tuple[tuple[float, ...], tuple[int, int] | None]] = {
    "[1,2,3,4]": ((0, 1 / 16, 4 / 16, 9 / 16, 1), None),
    "[1,[2,3],4]": ((0, 1 / 12, 4 / 12, 7 / 12, 1), (1, 2)),
    "[[1,2],3,4]": ((0, 1 / 10, 2 / 10, 5 / 10, 1), (0, 1)),
}
"""By structure: the score of 0 to 4 steps passed; and a pair of steps in parallel, whose second, right, counts for one step
when the first is wrong and all before it are right."""


def group_score(kind: str, right: Sequence[bool]) -> float:
    """The score, 0…1, of a group whose four questions are answered so. Raises ValueError for an unknown kind."""
    name, _, structure = kind.partition(" ")
    if name == "relevance":
        return (sum(right) / SIZE) ** 2
    if name != "logic" or structure.replace(" ", "") not in _CHAINS:
        raise ValueError(f"{kind!r}; valid: relevance, logic {', logic '.join(_CHAINS)}")
    scores, parallel = _CHAINS[structure.replace(" ", "")]
    passed = next((step for step, is_right in enumerate(right) if not is_right), SIZE)
    if parallel and passed == parallel[0] and right[parallel[1]]:
        passed += 1
    return scores[passed]


def groups_of(rows: Sequence[Prediction]) -> dict[str, list[int]]:
    """The places in `rows` of each group of four, by video, in the order of the questions.

    Raises UserError for a group that is not whole.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        found[row.video].append(place)
    for video, places in found.items():
        places.sort(key=lambda place: _number(rows[place].question_id))
        numbers = [_number(rows[place].question_id) for place in places]
        if numbers != [*range(1, SIZE + 1)]:
            raise UserError(
                f"{video}: its group has the questions {', '.join(rows[place].question_id for place in places)}; Video-MME-v2 "
                f"scores groups of {SIZE}, numbered from 1"
            )
    return dict(found)


def kind_of(row: Prediction) -> str:
    """How the group of a question is scored. Raises UserError when the row does not say it."""
    kinds = [name.removeprefix(f"{GROUP}: ") for name in row.types if name.startswith(f"{GROUP}: ")]
    if len(kinds) != 1:
        raise UserError(f"question {row.question_id}: does not say its {GROUP}; Video-MME-v2's file has it")
    return kinds[0]


def _number(question_id: str) -> int:
    number = question_id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
