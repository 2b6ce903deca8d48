"""The scores of a file of predictions: for each selector and budget every rule's accuracy, and the comparisons of selectors.

Invariants: every accuracy is over all questions of the file; one that could not be asked, and a reply that a rule cannot read,
is wrong, and is counted. The result is plain JSON, and a function of the rows alone.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from services.schema import LETTERS
from services.scoring.benchmarks import BENCHMARKS, Benchmark
from services.scoring.extraction import Rule, lenient, strict
from services.scoring.groups import GROUP, group_score, groups_of, kind_of
from services.scoring.predictions import Prediction, cells
from services.scoring.statistics import RESAMPLES, Bootstrap, compare

RULES = ("strict", "lenient", "official", "lmms")
"""Rules that replies are read by, side by side: the letter alone; any common form; the script of the benchmark's authors;
lmms-eval."""


def score(rows: Sequence[Prediction]) -> dict[str, Any]:
    """The scores of rows that `read_predictions` accepted.

    `results` has a table of each selector at each budget, in the file's order, `comparisons` each two selectors at one budget.
    Raises UserError for a group of Video-MME-v2 that is not whole.
    """
    benchmark = BENCHMARKS[rows[0].benchmark]
    found = {cell: list(by_id.values()) for cell, by_id in cells(rows).items()}
    order = [row.question_id for row in next(iter(found.values()))]
    found = {cell: _ordered(part, order) for cell, part in found.items()}
    bootstrap = Bootstrap([row.video for row in next(iter(found.values()))])
    return {
        "benchmark": rows[0].benchmark,
        "title": benchmark.title,
        "headline": benchmark.headline,
        "prompt": rows[0].prompt,
        "prompt_hash": rows[0].prompt_hash,
        "model": rows[0].model,
        "model_hash": rows[0].model_hash,
        "questions": len(order),
        "videos": bootstrap.num_videos,
        "resamples": RESAMPLES,
        "results": [_result(benchmark, part, bootstrap) for part in found.values()],
        "comparisons": list(_comparisons(benchmark, found, bootstrap)),
    }


def _ordered(rows: Sequence[Prediction], order: Sequence[str]) -> list[Prediction]:
    by_id = {row.question_id: row for row in rows}
    return [by_id[name] for name in order]


def _rules(benchmark: Benchmark) -> dict[str, Rule]:
    return {
        "strict": strict,
        "lenient": lenient,
        "official": benchmark.official.extract,
        "lmms": benchmark.lmms.extract,
    }


def letter(rule: Rule, row: Prediction) -> str | None:
    """The letter that `rule` reads, None also for a letter that is none of the options'."""
    found = rule(row.reply) if row.reply is not None else None
    return found if found in tuple(LETTERS[: row.num_options]) else None


def _result(benchmark: Benchmark, rows: Sequence[Prediction], bootstrap: Bootstrap) -> dict[str, Any]:
    """The scores of one selector at one budget."""
    dimensions = _dimensions(benchmark, rows)
    if benchmark.headline == "groups":  # only the last question of a group says the others, which are the group's
        dimensions = {GROUP: dimensions[GROUP]} if GROUP in dimensions else {}
    main = dimensions.get(benchmark.dimension, {})
    rules: dict[str, Any] = {}
    right: dict[str, np.ndarray] = {}
    for name, rule in _rules(benchmark).items():
        letters = [letter(rule, row) for row in rows]
        right[name] = np.array([found == row.label for found, row in zip(letters, rows, strict=True)], dtype=float)
        unparsable = sum(found is None and row.reply is not None for found, row in zip(letters, rows, strict=True))
        rules[name] = {
            "unparsable": unparsable,
            "micro": _estimate(right[name].mean(), bootstrap.interval(right[name])),
            "macro": _estimate(_macro(right[name], main), bootstrap.macro_interval(right[name], main))
            if main
            else None,
        }
    if benchmark.headline == "groups":
        _add_group_scores(rows, rules, right)
    return {
        "selector": rows[0].selector,
        "selector_hash": rows[0].selector_hash,
        "budget": rows[0].budget,
        "frames": float(np.mean([len(row.frames) for row in rows])),
        "visual_tokens": float(np.mean([row.visual_tokens for row in rows])),
        "not_asked": sum(row.reply is None for row in rows),
        "rules": rules,
        "breakdown": {
            dimension: {
                name: {"questions": int(chosen.sum())}
                | {
                    rule: _estimate(right[rule][chosen].mean(), bootstrap.interval(right[rule], chosen))
                    for rule in RULES
                }
                for name, chosen in members.items()
            }
            for dimension, members in dimensions.items()
        },
    }


def _estimate(value: float, interval: tuple[float, float] | None) -> dict[str, Any]:
    return {"accuracy": float(value), "interval": list(interval) if interval else None}


def _macro(right: np.ndarray, members: Mapping[str, np.ndarray]) -> float:
    return float(np.mean([right[chosen].mean() for chosen in members.values()]))


def _dimensions(benchmark: Benchmark, rows: Sequence[Prediction]) -> dict[str, dict[str, np.ndarray]]:
    """The members, bool per question, of every label of every dimension; the benchmark's own comes first. A question counts in
    each of its labels."""
    found: dict[str, dict[str, np.ndarray]] = {benchmark.dimension: {}}
    for place, row in enumerate(rows):
        for name in row.types:
            dimension, colon, text = name.partition(": ")
            group = found.setdefault(dimension if colon else benchmark.dimension, {})
            group.setdefault(text if colon else name, np.zeros(len(rows), dtype=bool))[place] = True
    return {dimension: dict(sorted(group.items(), key=_as_number)) for dimension, group in found.items() if group}


def _as_number(item: tuple[str, Any]) -> tuple[float, str]:
    """Numbers by value, and before names, which keep their order of letters."""
    return (float(item[0]), "") if item[0].isdecimal() else (float("inf"), item[0])


def _add_group_scores(rows: Sequence[Prediction], rules: dict[str, Any], right: Mapping[str, np.ndarray]) -> None:
    """Add the mean score of the groups of four, and the mean of every label that the last question of a group has."""
    groups = groups_of(rows)
    lasts = [rows[places[-1]] for places in groups.values()]
    kinds = [kind_of(row) for row in lasts]
    bootstrap = Bootstrap(list(groups))
    for name in rules:
        whole = zip(kinds, groups.values(), strict=True)
        scores = np.array([group_score(kind, [right[name][p] > 0 for p in places]) for kind, places in whole])
        of_label: dict[str, list[float]] = defaultdict(list)
        for row, value in zip(lasts, scores, strict=True):
            for label in row.types:
                of_label[label].append(float(value))
        means = {label: float(np.mean(values)) for label, values in sorted(of_label.items())}
        rules[name]["groups"] = _estimate(scores.mean(), bootstrap.interval(scores)) | {"labels": means}


def _comparisons(
    benchmark: Benchmark, found: Mapping[tuple[str, int], Sequence[Prediction]], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Each two selectors at one budget, by each rule."""
    rules = _rules(benchmark)

    def right(rows: Sequence[Prediction], rule: Callable[[str], str | None]) -> np.ndarray:
        return np.array([letter(rule, row) == row.label for row in rows], dtype=float)

    return [
        {"budget": one[1], "selector": one[0], "other": two[0], "rule": name}
        | asdict(compare(right(found[one], rule), right(found[two], rule), bootstrap))
        for one, two in itertools.combinations(found, 2)
        if one[1] == two[1]
        for name, rule in rules.items()
    ]
