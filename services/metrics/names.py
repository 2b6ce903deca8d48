"""Every metric once: its name, what it means, its unit, and where a person sees it. To add one, add its row.

Invariants: whatever is logged has a row, and every row is logged by some run: `tests/end_to_end/test_command.py` compares both.
The last part of a name may be open (`reward/<term>`): the run chooses it, and it is filled in wherever the row repeats it. A
name with a row of its own never counts as one of an open row. The order of the rows is that of the report's table, of the
console's line and of a chart's curves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    """`<family>/<what>`, as in `metrics.jsonl`; those of the family `accuracy` are in `summary.json`."""
    label: str
    """What it is, in a few words: in the report's table, and its description in TensorBoard."""
    unit: str = ""
    """What it is measured in; empty: a plain number."""
    table: bool = False
    """Whether the report's table shows its first and last value."""
    console: str = ""
    """Format of the value in the console's line of a step; empty: not shown there."""
    chart: str = ""
    """Title of the report's chart that draws it (`CHARTS` of `cluster/report.py`); empty: none does."""
    curve: str = ""
    """What the chart's legend calls it."""

    @property
    def family(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]

    @property
    def fixed(self) -> str:
        """What every name of this row begins with; the whole name when nothing is open."""
        return self.name.partition("<")[0]

    @property
    def description(self) -> str:
        """Label and unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def filled(self, name: str) -> Metric:
        """The row of `name`, which stands where the open part stood."""
        if self.name == name:
            return self
        part, place = name.removeprefix(self.fixed), self.name.removeprefix(self.fixed)
        texts = {text: getattr(self, text).replace(place, part) for text in ("label", "console", "curve")}
        return replace(self, name=name, **texts)


METRICS = (
    Metric(
        "validation/accuracy", "validation accuracy", table=True,
        console="acc {:.2f}", chart="Validation", curve="accuracy",
    ),
    Metric(
        "validation/queries_right", "validation: wanted queries asked", "share", table=True,
        chart="Validation", curve="queries right",
    ),
    Metric(
        "validation/moments_seen", "validation: moments seen", "share", table=True,
        chart="Validation", curve="moments seen",
    ),
    Metric("validation/not_asked", "validation: questions that could not be asked"),
    Metric("reward/total", "reward", table=True, console="{:.3f}", chart="Reward", curve="total"),
    Metric("reward/accuracy", "accuracy reward", table=True, console="acc {:.2f}", chart="Reward", curve="accuracy"),
    Metric("reward/format", "format reward", table=True, console="fmt {:.2f}", chart="Reward", curve="format"),
    Metric("reward/info", "info reward", table=True, console="info {:.2f}", chart="Reward", curve="info"),
    Metric("reward/<term>", "reward: <term>", table=True, console="<term> {:.2f}", chart="Reward", curve="<term>"),
    Metric("policy/loss", "policy loss", table=True, console="loss {:.2g}", chart="Policy loss", curve="loss"),
    Metric(
        "policy/grad_norm", "policy gradient norm", table=True,
        console="grad {:.2g}", chart="Policy gradient norm", curve="norm",
    ),
    Metric(
        "policy/learning_rate", "policy learning rate", table=True, chart="Policy learning rate", curve="rate",
    ),
    Metric(
        "policy/mismatch_kl", "mismatch KL", "nats per token", table=True,
        console="kl {:.2g}", chart="Mismatch KL", curve="KL",
    ),
    Metric("policy/mismatch_max_ratio", "largest ratio of the learner's to the engine's probability of a token"),
    Metric("policy/entropy", "policy entropy", "nats per token", table=True, chart="Policy entropy", curve="entropy"),
    Metric("policy/clip_share", "clip share", table=True, chart="Clip share", curve="share"),
    Metric("policy/truncated_share", "tokens whose importance weight reached its cap", "share"),
    Metric("policy/kl", "KL to the model as it was loaded", "nats per token"),
    Metric("policy/tokens", "response tokens of the step"),
    Metric("policy/computed_tokens", "tokens the policy learner computed, prompts included"),
    Metric("policy/skipped", "1 when no group had signal for the policy"),
    Metric("policy/version", "version of the policy's weights", console="v{:.0f}"),
    Metric("sampler/loss", "sampler loss", table=True, console="loss {:.2g}", chart="Sampler loss", curve="loss"),
    Metric("sampler/grad_norm", "sampler gradient norm", table=True, console="grad {:.2g}"),
    Metric(
        "sampler/learning_rate", "sampler learning rate", table=True, chart="Sampler learning rate", curve="rate",
    ),
    Metric(
        "sampler/entropy", "sampler entropy", "nats", table=True,
        console="H {:.2f}", chart="Sampler entropy", curve="entropy",
    ),
    Metric("sampler/draws", "draws the sampler learnt from"),
    Metric("sampler/skipped", "1 when no draw had signal for the sampler"),
    Metric("sampler/version", "version of the sampler's weights", console="v{:.0f}"),
    Metric("rollout/groups", "groups"),
    Metric("rollout/group_size", "trajectories per group", table=True),
    Metric(
        "rollout/groups_without_signal", "groups without signal", "share", table=True,
        chart="Lost signal", curve="groups without signal",
    ),
    Metric("rollout/right_answers", "right answers", "share"),
    Metric("rollout/queries", "queries per query turn"),
    Metric(
        "rollout/queries_unparsed", "query replies unparsed", "share", table=True,
        chart="Lost signal", curve="query replies unparsed",
    ),
    Metric(
        "rollout/answers_unparsed", "answers unparsed", "share", table=True,
        chart="Lost signal", curve="answers unparsed",
    ),
    Metric("rollout/queries_truncated", "query replies cut at rollout.query_tokens", "share"),
    Metric("rollout/answers_truncated", "answers cut at rollout.answer_tokens", "share"),
    Metric("rollout/query_tokens", "tokens per query reply"),
    Metric("rollout/answer_tokens", "tokens per answer"),
    Metric("rollout/left_out", "questions left out so far"),
    Metric("cache/decodes", "videos decoded so far, by the embedders that run now"),
    Metric("supervision/restarts", "actors restarted so far, the ranks of a learner and the weight store too"),
    Metric("supervision/redispatched", "calls done again so far, their actor being lost"),
    Metric("supervision/lost_seconds", "time so far in which an actor was down", "s"),
    Metric("supervision/steps_again", "steps done again so far, a learner being lost"),
    Metric("timing/step", "step time", "s", table=True, console="{:.1f} s", chart="Step time", curve="whole step"),
    Metric("timing/rollout", "rollout time", "s", chart="Step time", curve="rollout"),
    Metric("timing/policy_update", "policy update time", "s", chart="Step time", curve="policy"),
    Metric("timing/sampler_update", "sampler update time", "s", chart="Step time", curve="sampler"),
    Metric("timing/publish", "weight publication time", "s", chart="Step time", curve="publish"),
    Metric("timing/checkpoint_hold", "time that training stood still for a checkpoint", "s"),
    Metric("timing/validation", "validation time", "s"),
    Metric("policy/zero_gradients/<part>", "policy <part>: weights without gradient", "share", table=True),
    Metric("sampler/zero_gradients/<part>", "sampler <part>: weights without gradient", "share", table=True),
    Metric("accuracy/before", "validation accuracy before training"),
    Metric("accuracy/after", "validation accuracy after training"),
    Metric("accuracy/after/<K>", "validation accuracy after training, with <K> frames"),
    Metric("accuracy/uniform", "validation accuracy before training, with uniform frames"),
)  # fmt: skip

_CLOSED = {metric.name: metric for metric in METRICS if metric.name == metric.fixed}
_OPEN = [metric for metric in METRICS if metric.name != metric.fixed]


def row_of(name: str) -> Metric | None:
    """The row that names `name`, as it stands in the table; None where there is none."""
    return _CLOSED.get(name) or next((row for row in _OPEN if name.startswith(row.fixed) and name != row.fixed), None)


def named(names: Iterable[str]) -> list[Metric]:
    """The rows of `names` in the table's order, open parts filled in. A name without a row, as an older run's file may hold
    it, has none."""
    rows = [(row, name) for name in dict.fromkeys(names) if (row := row_of(name))]
    rows.sort(key=lambda pair: METRICS.index(pair[0]))
    return [row.filled(name) for row, name in rows]
