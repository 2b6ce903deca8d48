"""What the toy MLLM is taught to say: the two turns' replies about things it is shown, question by question.

An answer names what it sees and then the letter; without the moment among its frames it guesses. A query turn translates the
question's names into CLIP's words, and is *often wrong*: every name has a rate of its own at which it is understood
(`understood`), and a word that it is most often mistaken for. So some are mostly right from the start and others mostly wrong,
and there is something left to learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.prompts import answer_messages, query_messages
from cluster.toyworld.questions import NUM_OPTIONS, Asked, Palette, ask, look_alikes
from cluster.toyworld.words import ALIASES, COLOURS, SHAPES, Thing
from services.schema import LETTERS, Question

LEAST, MOST = 0.15, 0.95
"""Lowest and highest rate at which a name is understood."""
SHARES = {"colour": 0.14, "shape": 0.18, "place": 0.18, "after": 0.3, "both": 0.2}
"""The share of each kind of question: more of what is harder to learn."""
UNSEEN = 0.1
"""Share of answers whose moments are not shown."""
ANSWER = ": <answer>"
"""Between what is seen and its letter."""
SECONDS = (120, 600)
"""Length of the videos that the frames are said to come from."""


@dataclass(frozen=True)
class Dialogue:
    """One turn: what is shown and asked, and the reply."""

    messages: list[dict[str, Any]]
    shown: tuple[Thing, ...]
    """The frames, in time order."""
    seconds: int
    """Length of the whole video."""
    reply: str


def answers(rng: np.random.Generator, fewest: int, most: int) -> Iterator[Dialogue]:
    """Endless answer turns over `fewest` to `most` frames; as many as the question's moments at least."""
    while True:
        asked, palette = _asked(rng)
        count = max(int(rng.integers(fewest, most + 1)), len(asked.moments))
        seen = most < 4 or rng.random() >= UNSEEN
        shown = _shown(asked, palette, count, seen, rng)
        place = LETTERS.index(asked.answer) if seen else int(rng.integers(NUM_OPTIONS))
        yield Dialogue(answer_messages(_question(asked)), shown, int(rng.integers(*SECONDS)), _answer(asked, place))


def queries(rng: np.random.Generator, previews: int) -> Iterator[Dialogue]:
    """Endless query turns over `previews` frames of other things."""
    while True:
        asked, palette = _asked(rng)
        shown = tuple(palette.thing() for _ in range(previews))
        yield Dialogue(query_messages(_question(asked)), shown, int(rng.integers(*SECONDS)), _query_reply(asked, rng))


def questions(rng: np.random.Generator) -> Iterator[Question]:
    """Endless questions without a dialogue."""
    while True:
        yield _question(_asked(rng)[0])


def understood() -> dict[str, tuple[float, str]]:
    """For every alias, the rate at which it is understood and the word it is mistaken for else (mostly)."""
    rng = np.random.default_rng(0)  # a part of the language: the same whatever the seed
    names = [alias for aliases in ALIASES.values() for alias in aliases]
    rates = rng.permutation(np.linspace(LEAST, MOST, len(names)))
    table: dict[str, tuple[float, str]] = {}
    for (word, aliases), pair in zip(ALIASES.items(), rates.reshape(-1, 2), strict=True):
        others = [other for other in (SHAPES if word in SHAPES else COLOURS) if other != word]
        table |= {alias: (float(rate), str(rng.choice(others))) for alias, rate in zip(aliases, pair, strict=True)}
    return table


_UNDERSTOOD = understood()


def _asked(rng: np.random.Generator) -> tuple[Asked, Palette]:
    palette = Palette(rng)
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    return ask(kind, palette.reserve(kind), palette, 0.9, LETTERS[rng.integers(NUM_OPTIONS)], rng), palette


def _question(asked: Asked) -> Question:
    return Question("", "", asked.text, asked.options, asked.answer)


def _shown(asked: Asked, palette: Palette, count: int, seen: bool, rng: np.random.Generator) -> tuple[Thing, ...]:
    """`count` frames: the question's moments (if they are to be seen) between look-alikes and other things."""
    near = look_alikes(asked, 2, palette)
    blocks = ([[*asked.moments]] if asked.kind == "after" else [[thing] for thing in asked.moments]) if seen else []
    while (free := count - sum(map(len, blocks))) > 0:
        if blocks and rng.random() < 0.2:  # the same thing in two frames
            block = blocks[rng.integers(len(blocks))]
            place = int(rng.integers(len(block)))
            block.insert(place, block[place])
        elif near and rng.random() < 0.3:
            blocks.append([near[rng.integers(len(near))]] * min(free, int(rng.integers(1, 3))))
        else:
            blocks.append([palette.thing()])
    return tuple(thing for place in rng.permutation(len(blocks)) for thing in blocks[place])


def _answer(asked: Asked, place: int) -> str:
    """The reply that means the option at `place`: what is looked for by CLIP's words, what is seen, and the letter."""
    option = asked.options[place]
    if asked.kind == "both":
        colours = [thing.colour for thing in asked.moments] if option == asked.truth else option.split(" and ")
        one, two = (f"the {name} is {colour}" for name, colour in zip(asked.names, colours, strict=True))
        seen = f"{one}, {two}: {option}"
    elif asked.kind == "after":
        seen = f"after the {asked.names[0]} comes {option}"
    else:
        seen = f"the {asked.wanted[0].removeprefix('a ')} is {option}"
    return f"I see that {seen}{ANSWER}{LETTERS[place]}</answer>"


def _query_reply(asked: Asked, rng: np.random.Generator) -> str:
    """One line of reasoning and the queries, each name as it is understood this time."""
    heard = []
    for name, words in zip(asked.names, asked.called, strict=True):
        rate, mistaken = _UNDERSTOOD.get(words, (1.0, name))
        if rng.random() < rate:
            heard.append(name)
        elif rng.random() < 0.5:
            heard.append(mistaken)
        else:
            heard.append(str(rng.choice(SHAPES if name in SHAPES else list(COLOURS))))
    wanted = asked.queries(heard)
    lines = "\n".join(f"<query>{query}</query>" for query in wanted)
    return f"I look for {' and '.join(wanted)}.\n{lines}"
