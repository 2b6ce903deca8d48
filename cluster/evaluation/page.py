"""The tables that `msjoe score` and `msjoe evaluate` print of scores (`services/scoring/score.py`, `evidence.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.scoring import RULES

MAIN = "lenient"
"""The rule by which selectors are compared on the console; the JSON has every rule, every budget and every pair."""
KINDS = {"micro": "all questions", "macro": "mean over labels", "groups": "mean score of groups"}
Scores = Mapping[str, Any]


def show(scores: Scores, console: Console) -> None:
    """Print every table."""
    console.print(_head(scores), "")
    for kind in dict.fromkeys((scores["headline"], "micro")):
        console.print(_rules(scores, kind), "")
    for table in (*_budgets(scores), *_breakdowns(scores), *_comparisons(scores)):
        console.print(table, "")


def _head(scores: Scores) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("benchmark", Text(scores["title"], style="bold"))
    grid.add_row("questions", f"{scores['questions']:,} about {scores['videos']:,} videos")
    grid.add_row("prompt", Text(f"{scores['prompt']} ({scores['prompt_hash']})"))
    grid.add_row("MLLM", Text(f"{scores['model']} ({scores['model_hash']})"))
    return grid


def _table(*columns: str, title: str, caption: str = "", texts: int = 1) -> Table:
    """A table whose first `texts` columns are text and whose others are numbers."""
    table = Table(
        *columns, title=title, title_justify="left", caption=caption or None, caption_justify="left", box=None
    )
    for column in table.columns[texts:]:
        column.justify = "right"
    return table


def _rules(scores: Scores, kind: str) -> Table:
    """The accuracy of each selector and budget by every rule."""
    title = f"Accuracy in % by each rule that reads replies: {KINDS[kind]}"
    columns = ("selector", "frames", "visual tokens", *RULES, "unparsable", "not asked")
    caption = (
        "[ ]: 95 % interval, by bootstrap over videos. unparsable: replies that strict / lenient cannot read, wrong."
    )
    table = _table(*columns, title=title, caption=caption)
    for result in scores["results"]:
        rules = result["rules"]
        shown = [_percent(rules[rule][kind], interval=rule in ("strict", "lenient")) for rule in RULES]
        lost = f"{rules['strict']['unparsable']} / {rules['lenient']['unparsable']}"
        tokens, frames = f"{result['visual_tokens']:,.0f}", str(result["budget"])
        table.add_row(Text(result["selector"]), frames, tokens, *shown, lost, str(result["not_asked"]))
    return table


def _budgets(scores: Scores) -> Iterator[Table]:
    """Accuracy over the frame budget; none with one budget. Selectors are compared within a column, at equal visual tokens."""
    results, kind = scores["results"], scores["headline"]
    budgets = sorted({result["budget"] for result in results})
    if len(budgets) < 2:
        return
    tokens = {
        budget: {result["visual_tokens"] for result in results if result["budget"] == budget} for budget in budgets
    }
    spans = {
        budget: f"{min(known):,.0f}" + (f"…{max(known):,.0f}" if max(known) > min(known) else "")
        for budget, known in tokens.items()
    }
    uneven = [str(budget) for budget in budgets if len(tokens[budget]) > 1]
    caption = f"not at equal visual tokens: {', '.join(uneven)} frames" if uneven else ""
    title = f"Accuracy in % ({MAIN}, {KINDS[kind]}) over frames, and the visual tokens that they are"
    table = _table("selector", *(f"{budget} ({spans[budget]})" for budget in budgets), title=title, caption=caption)
    for name in dict.fromkeys(result["selector"] for result in results):
        of_name = {result["budget"]: result["rules"][MAIN][kind] for result in results if result["selector"] == name}
        table.add_row(Text(name), *(_percent(of_name.get(budget)) for budget in budgets))
    yield table


def _breakdowns(scores: Scores) -> Iterator[Table]:
    """Accuracy of the labels of each dimension that has several, strict and lenient, at the largest budget."""
    most = max(result["budget"] for result in scores["results"])
    results = [result for result in scores["results"] if result["budget"] == most]
    cells, at = [result["selector"] for result in results], f"at {most} frames, in %: strict / lenient"
    for dimension, members in results[0]["breakdown"].items():
        if len(members) < 2:
            continue
        table = _table(dimension, "questions", *cells, title=f"By {dimension} {at}")
        for name, first in members.items():
            parts = [result["breakdown"][dimension][name] for result in results]
            shown = [f"{_percent(part['strict'])} / {_percent(part['lenient'])}" for part in parts]
            table.add_row(Text(name), str(first["questions"]), *shown)
        yield table
    if scores["headline"] == "groups":
        table = _table("groups of four", *cells, title=f"Mean score of groups {at}")
        for name in results[0]["rules"][MAIN]["groups"]["labels"]:
            both = [
                [result["rules"][rule]["groups"]["labels"][name] for rule in ("strict", MAIN)] for result in results
            ]
            table.add_row(Text(name), *(" / ".join(f"{100 * value:.1f}" for value in values) for values in both))
        yield table


def _comparisons(scores: Scores) -> Iterator[Table]:
    """The first selector and each other at one budget, on the questions that one of them alone answers right."""
    first = scores["results"][0]["selector"]
    compared: Sequence[Scores] = [
        one for one in scores["comparisons"] if one["rule"] == MAIN and one["selector"] == first
    ]
    if not compared:
        return
    columns = ("selectors", "frames", "difference in points", "only the first right", "only the second", "p")
    caption = "p: exact two-sided McNemar test, of one pair; of many pairs some are below 0.05 by chance"
    table = _table(*columns, title=f"The first selector and each other, {MAIN}", caption=caption)
    for one in compared:
        pair = Text(f"{one['selector']} – {one['other']}")
        difference = _percent({"accuracy": one["difference"], "interval": one["interval"]}, interval=True, sign="+")
        table.add_row(
            pair, str(one["budget"]), difference, str(one["only_first"]), str(one["only_second"]), f"{one['p']:.2g}"
        )
    yield table


def _percent(estimate: Scores | None, interval: bool = False, sign: str = "") -> str:
    if estimate is None:
        return "–"
    value = f"{100 * estimate['accuracy']:{sign}.1f}"
    if not interval or estimate["interval"] is None:
        return value
    low, high = (f"{100 * bound:{sign}.1f}" for bound in estimate["interval"])
    return rf"{value} \[{low}, {high}]"


def show_evidence(evidence: Scores, console: Console) -> None:
    """Print what the choices of every selector at every budget show of the evidence."""
    title = "What the frames show of the evidence"
    caption = (
        "recall: moments that a frame shows, in %, with its 95 % interval, by bootstrap over videos. coverage: candidate "
        "frames showing a moment that were taken, in %. gap: seconds from a moment to the nearest frame."
    )
    table = _table("selector", "frames", "recall@K", "coverage", "gap, s", title=title, caption=caption)
    for result in evidence["results"]:
        recall, coverage = ({"accuracy": result[name]["mean"], **result[name]} for name in ("recall", "coverage"))
        shown = _percent(recall, interval=True), _percent(coverage), f"{result['gap']['mean']:.1f}"
        table.add_row(Text(result["selector"]), str(result["budget"]), *shown)
    console.print(table)
    beyond = f", {evidence['unreachable']:,} of them shown by no candidate frame" if evidence["unreachable"] else ""
    console.print(
        f"{evidence['questions']:,} questions about {evidence['videos']:,} videos, {evidence['moments']:,} moments{beyond}\n"
    )
